"""What an edit is computed from: an SAE at its hook, its input and its features."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from sae_lens import SAE
from torch import Tensor

from mtsae_lens.sae.temporal_encoder import TemporalEncoder
from mtsae_lens.upstream import remember_norms, restore_output


@dataclass(frozen=True, eq=False)
class SAEState:
    """Input and features of an SAE at its hook. The reconstruction is computed once, however many edits need it.

    Args:
        sae: the SAE.
        sae_in: its input.
        feature_acts: the feature activations, before any edit.
        earlier_acts: feature activations of the positions before them, which the decoder of an SAE with memory reads; None at the start of a
            context, or if the decoder is pointwise.
        earlier_open: True at those earlier positions where the edit applied; None where `earlier_acts` is.
    """

    sae: SAE[Any]
    sae_in: Float[Tensor, "batch pos *d_in"]
    feature_acts: Float[Tensor, "batch pos d_sae"]
    earlier_acts: Float[Tensor, "batch past d_sae"] | None = None
    earlier_open: Bool[Tensor, "batch past"] | None = None

    @cached_property
    def sae_out(self) -> Float[Tensor, "batch pos *d_in"]:
        """Return the reconstruction from the features before any edit."""
        return self.decode_whole(self.whole_acts)

    @property
    def whole_acts(self) -> Float[Tensor, "batch past_and_pos d_sae"]:
        """Return the features of the earlier positions and of these."""
        return self.feature_acts if self.earlier_acts is None else torch.cat([self.earlier_acts, self.feature_acts], dim=1)

    def whole_open(self, open_at: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch past_and_pos"]:
        """Return where the edit applied at the earlier positions, and applies at these.

        Args:
            open_at: True where the edit applies.
        """
        return open_at if self.earlier_open is None else torch.cat([self.earlier_open.to(open_at.device), open_at], dim=1)

    def decode_whole(self, whole_acts: Float[Tensor, "batch past_and_pos d_sae"]) -> Float[Tensor, "batch pos *d_in"]:
        """Decode features in the form of `whole_acts`.

        Args:
            whole_acts: features of the earlier positions and of these.

        Returns:
            The reconstructions of these positions.
        """
        remember_norms(self.sae, self.sae_in)
        return self.sae.decode(whole_acts)[:, -self.feature_acts.shape[1] :]

    def decode_change(self, edited: Float[Tensor, "_ pos d_sae"], *, carried: bool = False) -> Float[Tensor, "_ pos *d_in"]:
        """Compute `decode(e') - decode(e)`, with the norms of the input where the SAE normalizes each input.

        The decoder of an SAE with memory would carry a change on to later positions. Unless `carried`, the recursion is that of the features
        as they were, so a change at a position changes the output at that position alone, as with every other SAE: `(e' - e) @ W_dec`.

        Args:
            edited: features e'.
            carried: whether the decoder carries the change on.
        """
        if isinstance(self.sae, TemporalEncoder) and self.sae.has_memory and not carried:
            return restore_output(self.sae, (edited - self.feature_acts) @ self.sae.W_dec)
        return self.decode_whole(edited) - self.sae_out

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
        earlier_open = None if self.earlier_open is None else self.earlier_open[kept]
        return SAEState(self.sae, self.sae_in[kept], self.feature_acts[kept], earlier, earlier_open)
