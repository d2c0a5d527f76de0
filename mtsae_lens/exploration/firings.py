"""Read a batch through an SAE: activations, pre-activations, the vectors of the scales, and the list of firings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE, TemporalSAE
from torch import Tensor

from mtsae_lens.data.masks import zero_rows
from mtsae_lens.sae.contributions import TapPart, tap_parts
from mtsae_lens.sae.temporal_encoder import TemporalEncoder
from mtsae_lens.splice.hooked_lm import HookedLM


@dataclass(frozen=True, eq=False)
class BatchReading:
    """A batch as the SAE reads it."""

    kept: Bool[Tensor, "batch pos"]  # positions that are counted: neither special tokens nor position 0
    feature_acts: Float[Tensor, "batch pos d_sae"]
    hidden_pre: Float[Tensor, "batch pos d_sae"]
    temporal: TemporalEncoder | None
    x: Float[Tensor, "batch pos d_in"] | None  # input that the taps of a temporal encoder read
    walls: Bool[Tensor, "batch pos"] | None  # positions that they do not read
    z: Float[Tensor, "batch pos n_scales d_in"] | None  # vectors of its scales

    @cached_property
    def parts(self) -> tuple[TapPart, ...]:
        """Return what each scale takes from each offset; empty for a pointwise SAE. It is cached because each part is as large as `x`."""
        if self.temporal is None or self.x is None or self.walls is None:
            return ()
        return tuple(tap_parts(self.temporal, self.x, self.walls))


@dataclass(frozen=True, eq=False)
class Firings:
    """All firings of a batch, one entry each, ordered by context and position."""

    row: Int[Tensor, " firing"]  # context * n_positions + position
    context: Int[Tensor, " firing"]  # row of the batch
    position: Int[Tensor, " firing"]
    feature: Int[Tensor, " firing"]
    value: Float[Tensor, " firing"]


@torch.no_grad()
def read_batch(lm: HookedLM, tokens: Int[Tensor, "batch pos"], h: Tensor | None = None) -> BatchReading:
    """Read a batch through model and SAE.

    Args:
        lm: model and SAE.
        tokens: the batch.
        h: activations at the hook, `(batch, pos, *d_in)`, if they are already computed.
    """
    kept, sae_in = ~lm.masked(tokens), lm.sae_input(tokens, h)
    if not isinstance(lm.sae, TemporalEncoder):
        feature_acts, hidden_pre = encode_with_pre(lm.sae, sae_in)
        return BatchReading(kept, feature_acts.masked_fill(~kept.unsqueeze(-1), 0.0), hidden_pre, None, None, None, None)
    x, walls = lm.sae.read_contexts(sae_in)
    z = lm.sae.encode_scales(x, walls)
    feature_acts, hidden_pre = lm.sae.features_from_scales(z, walls)
    return BatchReading(kept, feature_acts.masked_fill(~kept.unsqueeze(-1), 0.0), hidden_pre, lm.sae, x, walls, z)


def encode_with_pre(sae: SAE[Any], sae_in: Tensor) -> tuple[Float[Tensor, "*row d_sae"], Float[Tensor, "*row d_sae"]]:
    """Encode with a pointwise SAE.

    Args:
        sae: a pointwise SAE.
        sae_in: its input.

    Returns:
        Feature activations and pre-activations; the activations twice if the SAE has no hook at its pre-activations.
    """
    seen: list[Tensor] = []
    with sae.hooks(fwd_hooks=[("hook_sae_acts_pre", lambda hidden_pre, hook: seen.append(hidden_pre))]):
        feature_acts = sae.encode(sae_in)
    return feature_acts, seen[-1] if seen and seen[-1].shape == feature_acts.shape else feature_acts


def compute_features_at(
    lm: HookedLM, tokens: Int[Tensor, "batch pos"], h: Tensor, contexts: Int[Tensor, " row"], positions: Int[Tensor, " row"]
) -> tuple[Float[Tensor, "row d_sae"], Float[Tensor, "row d_sae"]]:
    """Compute features at chosen positions only, at the cost of these positions; gradients flow back to `h`.

    Args:
        lm: model and SAE.
        tokens: whole contexts.
        h: their activations at the hook.
        contexts: the context of each chosen position, as a row of `tokens`.
        positions: the positions.

    Returns:
        Feature activations and pre-activations.
    """
    sae_in = zero_rows(lm.splice.as_sae_input(h), lm.masked(tokens))
    if isinstance(lm.sae, TemporalEncoder):
        x, walls = lm.sae.read_contexts(sae_in)
        return lm.sae.features_from_scales(lm.sae.encode_scales(x, walls)[contexts, positions], walls[contexts, positions])
    if isinstance(lm.sae, TemporalSAE):  # its attention reads whole contexts
        feature_acts, hidden_pre = encode_with_pre(lm.sae, sae_in)
        return feature_acts[contexts, positions], hidden_pre[contexts, positions]
    feature_acts, hidden_pre = encode_with_pre(lm.sae, sae_in[contexts, positions].unsqueeze(1))
    return feature_acts.squeeze(1), hidden_pre.squeeze(1)


def find_firings(feature_acts: Float[Tensor, "batch pos d_sae"]) -> Firings:
    """List all activations above zero.

    Args:
        feature_acts: feature activations of a batch.
    """
    _, n_positions, d_sae = feature_acts.shape
    flat = feature_acts.flatten()
    place = (flat > 0).nonzero().squeeze(1)
    row, feature = place // d_sae, place % d_sae
    return Firings(row, row // n_positions, row % n_positions, feature, flat[place])
