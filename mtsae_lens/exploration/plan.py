"""Settings of an exploration: how much is measured, and how examples are shown."""

from __future__ import annotations

from dataclasses import dataclass

from mtsae_lens.errors import ConfigError

PERSISTENCE_LAGS = (1, 2, 4, 8)
IMPULSE_LAGS = (1, 2, 4, 8, 16, 32)
N_HISTOGRAM_BINS = 48
N_TOKENS_LISTED = 10  # promoted tokens, and the same number of suppressed tokens
N_NEIGHBOURS = 8
N_COFIRING_TOKENS = 100_000  # pairs need less text than single features, and memory grows with this number


@dataclass(frozen=True)
class Plan:
    """How much an exploration measures, and how it shows examples.

    Raises:
        ConfigError: a number is out of its range.
    """

    n_examples: int = 16
    """Strongest activations kept per feature, one per context."""
    n_sampled: int = 8
    """Firings drawn uniformly from all firings of a feature, at most one per context."""
    before: int = 20
    """Tokens shown before the peak."""
    after: int = 8
    """Tokens shown after the peak."""
    n_ablated: int = 3
    """Strongest examples per feature at which it is ablated; 0 skips the ablation."""
    n_attributed: int = 2
    """Strongest examples per feature that are attributed to earlier tokens through the language model; 0 skips the attribution."""
    n_attribution_contexts: int = 128
    """Contexts on which the first-order effect on the loss is measured; 0 skips it."""
    n_text_contexts: int = 32
    """Contexts of the text view."""
    seed: int = 0
    """Seed of the order of documents and of the sampled firings."""

    def __post_init__(self) -> None:
        for name, least in {
            "n_examples": 1,
            "n_sampled": 0,
            "before": 0,
            "after": 0,
            "n_ablated": 0,
            "n_attributed": 0,
            "n_attribution_contexts": 0,
            "n_text_contexts": 1,
        }.items():
            if getattr(self, name) < least:
                raise ConfigError(f"expected {name} of at least {least}, got {getattr(self, name)}; give a larger number")
        for name in ("n_ablated", "n_attributed"):
            if getattr(self, name) > self.n_examples:
                raise ConfigError(
                    f"expected {name} of at most n_examples={self.n_examples}, got {getattr(self, name)}; lower it"
                )

    @property
    def window(self) -> int:
        """Return the number of tokens of an example, if the context is long enough."""
        return self.before + 1 + self.after
