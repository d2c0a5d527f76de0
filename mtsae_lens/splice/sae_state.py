"""What an edit is computed from: an SAE at its hook, its input and its features."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

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
    """

    sae: SAE[Any]
    sae_in: Float[Tensor, "batch pos *d_in"]
    feature_acts: Float[Tensor, "batch pos d_sae"]

    @cached_property
    def sae_out(self) -> Float[Tensor, "batch pos *d_in"]:
        """Return the reconstruction from the features before any edit."""
        return self.sae.decode(self.feature_acts)

    def rows(self, kept: Bool[Tensor, " batch"]) -> SAEState:
        """Select some contexts of the batch.

        Args:
            kept: True for the contexts to keep.

        Returns:
            Their state; this object itself if all are kept.
        """
        return self if bool(kept.all()) else SAEState(self.sae, self.sae_in[kept], self.feature_acts[kept])
