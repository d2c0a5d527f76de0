"""Encode and decode a context in pieces with an SAE with memory, such as one position at a time in generation.

What one piece leaves to the next is the `Past` after it: the last reconstructions, and running averages that reach back to the start of the
context. So the pieces together give what the whole context gives, and a position costs the same however long the context is.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mtsae_lens.sae.memory import Past, run_decoder, run_encoder
from mtsae_lens.sae.temporal import normalize_scales
from mtsae_lens.upstream import restore_output


def encode_from(
    sae: Any, sae_in: Float[Tensor, "batch pos *d_in"], past: Past | None
) -> tuple[Float[Tensor, "batch pos d_sae"], Past]:
    """Compute the features of positions that continue a context.

    Args:
        sae: an SAE with memory.
        sae_in: its input at these positions, zero at walls.
        past: what the call for the positions before returned; None at the start of a context.

    Returns:
        The features, and the past after these positions.
    """
    # `skip_first_position` concerns the start of a context, not that of a piece, so a wall stands in for the position before
    after_wall = torch.cat([torch.zeros_like(sae_in[:, :1]), sae_in], dim=1)
    x, walls = (of[:, 1:] for of in sae.read_contexts(after_wall))
    past = Past.of(sae, x[:, 0]) if past is None else copy(past)
    difference = run_encoder(sae, x, walls, past=past)
    z = normalize_scales(sae.convolve({0: difference}), difference, sae.cfg.scale_norm, sae.cfg.context_gain)
    return sae.features_from_scales(z, walls)[0], past


def decode_from(
    sae: Any, feature_acts: Float[Tensor, "batch pos d_sae"], past: Past | None
) -> tuple[Float[Tensor, "batch pos *d_in"], Past]:
    """Compute the reconstructions of positions that continue a context.

    Args:
        sae: an SAE with memory.
        feature_acts: the features of these positions.
        past: what the call for the positions before returned; None at the start of a context.

    Returns:
        The reconstructions, and the past after these positions.
    """
    past = Past.of(sae, (feature_acts[:, :1] @ sae.W_dec)[:, 0]) if past is None else copy(past)
    decoded = run_decoder(sae, feature_acts, past=past) + sae.b_dec
    return restore_output(sae, sae.hook_sae_recons(decoded)), past
