"""What an edit is computed from: an SAE at its hook, its input and its features."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from sae_lens import SAE
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SAEState:
    """Input and features of an SAE at its hook. The reconstruction is computed once, however many edits need it.

    Args:
        sae: the SAE.
        sae_in: its input.
        feature_acts: the feature activations, before any edit.
        earlier_acts: feature activations of the positions before them, which the decoder of an SAE with memory reads; None at the start of a
            context, or if the decoder is pointwise.
    """

    sae: SAE[Any]
    sae_in: Float[Tensor, "batch pos *d_in"]
    feature_acts: Float[Tensor, "batch pos d_sae"]
    earlier_acts: Float[Tensor, "batch past d_sae"] | None = None

    @cached_property
    def sae_out(self) -> Float[Tensor, "batch pos *d_in"]:
        """Return the reconstruction from the features before any edit."""
        if self.earlier_acts is None:
            return self.sae.decode(self.feature_acts)
        n_new = self.feature_acts.shape[1]
        return self.sae.decode(torch.cat([self.earlier_acts, self.feature_acts], dim=1))[:, -n_new:]

    def rows(self, kept: Bool[Tensor, " batch"]) -> SAEState:
        """Select some contexts of the batch.

        Args:
            kept: True for the contexts to keep.

        Returns:
            Their state; this object itself if all are kept.
        """
        if bool(kept.all()):
            return self
        earlier = None if self.earlier_acts is None else self.earlier_acts[kept]
        return SAEState(self.sae, self.sae_in[kept], self.feature_acts[kept], earlier)
