"""What an edit is computed from: an SAE at its hook, its input and its features."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jaxtyping import Bool, Float
from sae_lens import SAE, SkipTranscoder
from torch import Tensor

from mtsae_lens.sae.memory import Past
from mtsae_lens.sae.memory_streaming import decode_from
from mtsae_lens.sae.temporal_encoder import TemporalEncoder
from mtsae_lens.upstream import remember_norms, restore_output


@dataclass(frozen=True, eq=False)
class SAEState:
    """Input and features of an SAE at its hook. The reconstruction is computed once, however many edits need it.

    Args:
        sae: the SAE.
        sae_in: its input.
        feature_acts: the feature activations, before any edit.
        past: what an SAE with memory remembers of the positions before these; None at the start of a context, or without memory.
        decoded: of a transcoder, what is at the hook that it decodes; None for an SAE.
    """

    sae: SAE[Any]
    sae_in: Float[Tensor, "batch pos *d_in"]
    feature_acts: Float[Tensor, "batch pos d_sae"]
    past: Past | None = None
    decoded: Float[Tensor, "batch pos d_out"] | None = None

    @property
    def target(self) -> Float[Tensor, "batch pos *d_out"]:
        """Return what the decoder reconstructs, and edits change: the SAE's input, or what is at the hook that a transcoder decodes."""
        return self.sae_in if self.decoded is None else self.decoded

    @cached_property
    def sae_out(self) -> Float[Tensor, "batch pos *d_in"]:
        """Return the reconstruction from the features before any edit."""
        return self.decode(self.feature_acts)

    @property
    def has_memory(self) -> bool:
        """Return whether the decoder reads features of earlier positions."""
        return isinstance(self.sae, TemporalEncoder) and self.sae.has_memory

    def decode(self, feature_acts: Float[Tensor, "_ pos d_sae"]) -> Float[Tensor, "_ pos *d_in"]:
        """Decode any features of these positions, with the norms of the input where the SAE normalizes each input.

        The decoder of an SAE with memory goes on from the past of the features before any edit. What a `SkipTranscoder` computes without
        features is added.

        Args:
            feature_acts: the features.
        """
        return self.decode_from(feature_acts, self.past)[0]

    def decode_from(
        self, feature_acts: Float[Tensor, "_ pos d_sae"], past: Past | None
    ) -> tuple[Float[Tensor, "_ pos *d_in"], Past | None]:
        """Decode features of these positions after another past than that of the features before any edit.

        Args:
            feature_acts: the features.
            past: what an SAE with memory remembers of the positions before; None at the start of a context, or without memory.

        Returns:
            The reconstructions, and the past after these positions; None without memory.
        """
        if self.has_memory:
            return decode_from(self.sae, feature_acts, past)
        remember_norms(self.sae, self.sae_in)
        decoded = self.sae.decode(feature_acts)
        if isinstance(self.sae, SkipTranscoder):
            decoded = decoded + self.sae_in @ self.sae.W_skip.T
        return decoded, None

    def decode_change(self, edited: Float[Tensor, "_ pos d_sae"], *, carried: bool = False) -> Float[Tensor, "_ pos *d_in"]:
        """Compute `decode(e') - decode(e)`, with the norms of the input where the SAE normalizes each input.

        The decoder of an SAE with memory would carry a change on to later positions. Unless `carried`, the recursion is that of the features
        as they were, so a change at a position changes the output at that position alone, as with every other SAE: `(e' - e) @ W_dec`.

        Args:
            edited: features e'.
            carried: whether the decoder carries the change on to later ones of these positions.
        """
        if self.has_memory and not carried:
            return restore_output(self.sae, (edited - self.feature_acts) @ self.sae.W_dec)
        return self.decode(edited) - self.sae_out

    def rows(self, kept: Bool[Tensor, " batch"]) -> SAEState:
        """Select some contexts of the batch.

        Args:
            kept: True for the contexts to keep.

        Returns:
            Their state; this object itself if all are kept.
        """
        if bool(kept.all()):
            return self
        past = None if self.past is None else self.past.select(kept)
        decoded = None if self.decoded is None else self.decoded[kept]
        return SAEState(self.sae, self.sae_in[kept], self.feature_acts[kept], past, decoded)
