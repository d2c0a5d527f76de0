"""How much is looked at, and how it is shown: what the facts depend on besides model, SAE and text."""

from __future__ import annotations

from dataclasses import dataclass

from mtsae_lens.errors import ConfigError

PERSISTENCE_LAGS = (1, 2, 4, 8)
N_HISTOGRAM_BINS = 48
N_TOKENS_LISTED = 10  # promoted, and as many suppressed
N_NEIGHBOURS = 8
N_COFIRING_TOKENS = 100_000  # pairs need less text than single features; their firings are kept, so memory grows with it


@dataclass(frozen=True)
class Plan:
    """Sizes of an exploration.

    Raises:
        ConfigError: a size that makes no sense.
    """

    n_examples: int = 16
    """Strongest activations kept per feature, one per context."""
    n_sampled: int = 8
    """Activations drawn uniformly from all firings of a feature, at most one per context."""
    before: int = 20
    """Tokens shown before the peak."""
    after: int = 8
    """Tokens shown after it."""
    n_ablated: int = 3
    """Strongest examples per feature at which its ablation is measured; 0 leaves that out."""
    n_attributed: int = 2
    """Strongest examples per feature that are attributed to the tokens before, through the language model; 0 leaves that out."""
    n_attribution_contexts: int = 128
    """Contexts on which the first-order effect on the loss is measured; 0 leaves that out."""
    n_text_contexts: int = 32
    """Contexts of the text view."""
    seed: int = 0
    """Of the order of documents and of the sampled firings."""

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
                raise ConfigError(f"{name} must be at least {least}; got {getattr(self, name)}")
        for name in ("n_ablated", "n_attributed"):
            if getattr(self, name) > self.n_examples:
                raise ConfigError(f"{name}={getattr(self, name)} is more than the {self.n_examples} examples kept (n_examples)")

    @property
    def window(self) -> int:
        """Tokens of an example, where the context is long enough."""
        return self.before + 1 + self.after
