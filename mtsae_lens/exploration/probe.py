"""Show a text box in a notebook: type a text, and see where features fire and which scales and offsets drive them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

try:
    import anywidget
    import traitlets
except ImportError as error:
    raise ImportError("FeatureProbe needs anywidget; install it with: pip install 'mtsae-lens[notebook]'") from error

from mtsae_lens.errors import ConfigError, MTSAEError
from mtsae_lens.exploration.live import TextFeatures, explain
from mtsae_lens.facts.exploration import Exploration
from mtsae_lens.splice.hooked_lm import HookedLM

_FOLDER = Path(__file__).parent
STRONGEST = -1  # value of `feature` when none is chosen: every token shows its strongest feature


class FeatureProbe(anywidget.AnyWidget):
    """A text box that shows the features of the text in it. Every trait can also be set from Python.

    Setting `text`, `feature` or `position` updates the other traits. `error` holds the message of the last error: a text that cannot be
    read shows nothing, and a feature that does not exist leaves the display unchanged.

    Args:
        lm: model and SAE.
        facts: facts about the same SAE; features are then labeled with their top tokens.
        traits: initial values of traits, such as `text`.

    Raises:
        ConfigError: the facts describe an SAE with another number of features.
    """

    _esm = _FOLDER / "probe.js"
    _css = _FOLDER / "probe.css"

    text = traitlets.Unicode("").tag(sync=True)
    feature = traitlets.Int(STRONGEST).tag(sync=True)
    position = traitlets.Int(-1).tag(sync=True)  # index of the clicked token; -1 for none
    tokens = traitlets.List(traitlets.Unicode()).tag(sync=True)
    activations = traitlets.List(traitlets.Float()).tag(
        sync=True
    )  # of the chosen feature, or of the strongest feature of each token
    strongest: Any = traitlets.List().tag(
        sync=True
    )  # features of the clicked token, or of the text: [feature, activation, label]
    contributions = traitlets.Dict().tag(sync=True)
    """`hidden_pre`, `bias`, and `scales` and `offsets` as lists of [name, value]; empty if no token is clicked."""
    error = traitlets.Unicode("").tag(sync=True)

    def __init__(self, lm: HookedLM, facts: Exploration | None = None, **traits: Any) -> None:
        if facts is not None and facts.about["d_sae"] != lm.sae.cfg.d_sae:
            raise ConfigError(
                f"expected facts about {lm.sae.cfg.d_sae} features, got {facts.about['d_sae']}; give the facts of this SAE"
            )
        self._lm = lm
        self._read: TextFeatures | None = None
        self._labels = {} if facts is None else dict(enumerate(facts.table["top_token"].to_pylist()))
        super().__init__(**traits)
        self.observe(self._on_text, "text")
        self.observe(self._on_choice, ["feature", "position"])
        if self.text:
            self._on_text()

    def _on_text(self, change: Any = None) -> None:
        self._read, self.error = None, ""
        if self.text.strip():
            try:
                self._read = explain(self._lm, self.text)
            except MTSAEError as error:
                self.error = str(error)
        self.tokens = [] if self._read is None else list(self._read.tokens)
        with self.hold_trait_notifications():
            self.position = -1
        self._on_choice()

    def _on_choice(self, change: Any = None) -> None:
        read = self._read
        if read is None:
            self.activations, self.strongest, self.contributions = [], [], {}
            return
        try:
            chosen = self.feature != STRONGEST
            self.activations = read.activations(self.feature) if chosen else read.feature_acts.amax(dim=1).tolist()
            clicked = 0 <= self.position < len(read.tokens)
            strongest = read.strongest(self.position) if clicked else read.strongest_anywhere()
            self.strongest = [[feature, value, self._labels.get(feature) or ""] for feature, value in strongest]
            shown = self.feature if chosen else (strongest[0][0] if strongest else None)
            self.contributions = self._contributions(read, shown) if clicked and shown is not None else {}
            self.error = ""
        except MTSAEError as error:
            self.error = str(error)

    def _contributions(self, read: TextFeatures, feature: int) -> dict[str, Any]:
        found = read.contributions(feature, self.position)
        return {
            "feature": feature,
            "hidden_pre": found.hidden_pre,
            "bias": found.bias,
            "scales": [["token" if d == 0 else f"dilation {d:.3g}", value] for d, value in found.scales.items()],
            "offsets": [[offset, value] for offset, value in found.offsets.items()],
        }
