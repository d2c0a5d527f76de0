"""Which features are of no use, and when an SAE has collapsed.

A collapsed SAE spends its active features on a constant: the same few fire at nearly every token, and most of the others never do. A
count of features that were silent for a while does not show it in a short run, and neither does explained variance.
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
    """How many features are silent and how many are always on."""

    n_features: int
    n_silent: int
    """Features that fired on none of the tokens that were counted."""
    n_always_on: int
    """Features that fired on over half of them."""
    l0: float
    """Features active at a token."""

    @property
    def collapsed(self) -> bool:
        """Features that are always on take up at least half of the active places, and over half of all features are silent."""
        return self.n_always_on > 0 and self.n_always_on >= 0.5 * self.l0 and self.n_silent > 0.5 * self.n_features

    def __str__(self) -> str:
        return (
            f"{self.n_always_on:,} features fire on over half of the tokens (L0 {self.l0:.1f}) and {self.n_silent:,} of "
            f"{self.n_features:,} are silent"
        )

    @property
    def warning(self) -> str | None:
        """What is wrong and what to do, in one line; None for an SAE that has not collapsed."""
        return f"the SAE looks collapsed: {self}; {REMEDY}" if self.collapsed else None


def count_always_on(rates: Float[Tensor, " d_sae"]) -> int:
    """Count the features that fire on over half of the tokens, from the share of tokens on which each fires."""
    return int((rates > ALWAYS_ON).sum())


def firing_counts(rates: Float[Tensor, " d_sae"] | Sequence[float]) -> FiringCounts:
    """Count silent and always-on features from the share of tokens on which each fires."""
    rates = torch.as_tensor(rates)
    return FiringCounts(len(rates), int((rates == 0).sum()), count_always_on(rates), float(rates.sum()))
