"""Detect a collapsed SAE, from how often its features fire.

In a collapsed SAE the same few features fire at nearly every token, and most of the others never do. In a short run neither the number of
dead features nor the explained variance shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

ALWAYS_ON = 0.5
"""A feature that fires on more than this share of the tokens counts as always on."""

REMEDY = "train it again with b_dec_init: mean (the default of 'mtsae train'), a lower --lr or more --training-tokens"


@dataclass(frozen=True)
class FiringCounts:
    """The numbers of features that are silent and that are always on."""

    n_features: int
    n_silent: int
    """Features that never fired on the tokens that were counted."""
    n_always_on: int
    """Features that fired on more than half of those tokens."""
    l0: float
    """Average number of features active at a token."""

    @property
    def collapsed(self) -> bool:
        """Return whether always-on features make up at least half of the L0, and more than half of all features are silent."""
        return self.n_always_on > 0 and self.n_always_on >= 0.5 * self.l0 and self.n_silent > 0.5 * self.n_features

    def __str__(self) -> str:
        return (
            f"{self.n_always_on:,} features fire on over half of the tokens (L0 {self.l0:.1f}) and {self.n_silent:,} of "
            f"{self.n_features:,} are silent"
        )

    @property
    def warning(self) -> str | None:
        """Return one line that says what is wrong and what to do; None for an SAE that has not collapsed."""
        return f"the SAE looks collapsed: {self}; {REMEDY}" if self.collapsed else None


def count_always_on(rates: Float[Tensor, " d_sae"]) -> int:
    """Count the features that fire on more than half of the tokens.

    Args:
        rates: share of tokens on which each feature fires, `(d_sae,)`.

    Returns:
        Their number.
    """
    return int((rates > ALWAYS_ON).sum())


def firing_counts(rates: Float[Tensor, " d_sae"] | Sequence[float]) -> FiringCounts:
    """Count silent and always-on features.

    Args:
        rates: share of tokens on which each feature fires, `(d_sae,)`.

    Returns:
        The counts.
    """
    rates = torch.as_tensor(rates)
    return FiringCounts(len(rates), int((rates == 0).sum()), count_always_on(rates), float(rates.sum()))
