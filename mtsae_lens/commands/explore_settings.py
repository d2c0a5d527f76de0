"""Settings of `mtsae explore`. This module loads pydantic alone."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from mtsae_lens.data.choices import Dtype, Split
from mtsae_lens.exploration.plan import Plan
from mtsae_lens.settings import Settings


class ExploreSettings(Settings):
    """Settings of `mtsae explore`."""

    sae: Path
    """Folder of a trained SAE of any architecture, or `hub:OWNER/NAME:SAE_ID`."""
    out: Path = Path("runs/explore")
    """Folder for the facts about the features and their page."""
    dataset: tuple[str, ...] | None = None
    """Text to search for examples. Each text is a separate corpus, and `selectivity` compares the first with the others. By default it is
    the dataset that the SAE was trained on."""
    split: Split = "select"
    """Split of the text to read. Choosing features on `test` would spoil the final measurement, which reads that split once. Use `train` if
    a tenth of the text is not enough."""
    n_tokens: int = Field(200_000, gt=0)
    """Number of tokens to read, divided evenly among the corpora. A shorter corpus is read whole."""
    n_examples: int = Field(16, gt=0)
    """Number of strongest activations to keep for each feature, at most one from each context."""
    n_sampled: int = Field(8, ge=0)
    """Number of activations to draw uniformly from all firings of a feature, at most one from each context."""
    before: int = Field(20, ge=0)
    """Number of tokens to show before the peak of an example."""
    after: int = Field(8, ge=0)
    """Number of tokens to show after the peak of an example."""
    n_ablated: int = Field(3, ge=0)
    """Number of strongest examples of each feature at which to measure its ablation. 0 skips the ablations."""
    n_attributed: int = Field(2, ge=0)
    """Number of strongest examples of each feature to attribute to earlier tokens through the language model. 0 skips the attribution."""
    n_attribution_contexts: int = Field(128, ge=0)
    """Number of contexts on which to measure the first-order effect of each feature on the loss. 0 skips the measurement."""
    n_text_contexts: int = Field(32, gt=0)
    """Number of contexts in the text view."""
    batch_size: int = Field(16, gt=0)
    """Maximum number of contexts in a forward pass. A large vocabulary or SAE lowers it automatically."""
    model: str | None = None
    """Language model to read the text with. By default it is the one that the SAE was trained on."""
    dtype: Dtype | None = None
    """Dtype of the language model. By default it is the same as when the SAE was trained."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Random seed, which decides the order of documents and the sampled activations."""
    device: str = "cpu"
    """Device to run on, such as `cpu`, `cuda`, `cuda:1` or `mps`."""

    @property
    def plan(self) -> Plan:
        """Return the plan of the exploration."""
        return Plan(**{name: getattr(self, name) for name in Plan.__dataclass_fields__})
