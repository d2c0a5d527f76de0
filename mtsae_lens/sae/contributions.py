"""Attribute a pre-activation to scales and offsets: exact parts, whose sum with `b_enc` is the pre-activation.

Given its own mean and standard deviation, a normalized scale is linear in its taps, so the part of each offset is exact:

    z_k = gain_k * ( sum_o (c_ko - mean(c_ko)) / std(c_k) * std(x) + mean(x) ),     c_ko = filters[k, o] * x[t + o]

The mean that `rescaled_layer_norm` puts back is the token's own, so it counts for offset 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtsae_lens.errors import ConfigError
from mtsae_lens.sae.temporal import NORM_EPS, sequence_reads
from mtsae_lens.sae.temporal_encoder import TemporalEncoder


@dataclass(frozen=True, eq=False)
class TapPart:
    """The part of a scale's vector that comes from one offset."""

    scale: int
    """Index of the scale in `cfg.dilations`."""
    place: int
    """Index of the offset in `read_offsets`."""
    vector: Float[Tensor, "batch pos d_in"]
    """The part at every position."""


def _encoder_by_scale(sae: TemporalEncoder, features: Tensor) -> Float[Tensor, "n_scales d_in feature"]:
    features = torch.as_tensor(features, device=sae.W_enc.device)
    if features.ndim != 1 or ((features < 0) | (features >= sae.cfg.d_sae)).any():
        raise ConfigError(
            f"expected a list of feature indices from 0 to {sae.cfg.d_sae - 1}, got {features.tolist()}; give them as torch.tensor([3, 14])"
        )
    return sae.encoder_by_scale(features)


@torch.no_grad()
def scale_contributions(
    sae: TemporalEncoder, h: Tensor, features: Int[Tensor, " feature"]
) -> Float[Tensor, "batch pos n_scales feature"]:
    """Compute what each scale adds to the pre-activations of chosen features.

    Args:
        sae: the SAE.
        h: activations, of a shape that `encode` takes.
        features: indices of the features, `(feature,)`.

    Returns:
        Contributions `(batch, pos, n_scales, feature)`; their sum over scales plus `b_enc` is the pre-activation.

    Raises:
        ConfigError: the SAE does not have such features.
    """
    z = sae.encode_scales(*sae.read_contexts(h))
    return torch.einsum("bpsd,sdf->bpsf", z, _encoder_by_scale(sae, features))


@torch.no_grad()
def tap_parts(sae: TemporalEncoder, x: Float[Tensor, "batch pos d_in"], walls: Bool[Tensor, "batch pos"]) -> Iterator[TapPart]:
    """Compute what each offset adds to the vector of each scale, one pair after another, so that only one is in memory.

    `sum_o part_ko = z_k` exactly, so the parts times `encoder_by_scale`, summed, plus `b_enc` are the pre-activations.

    Args:
        sae: the SAE.
        x: contexts from `read_contexts`, `(batch, pos, d_in)`.
        walls: the positions that are walls, from there too.

    Returns:
        An iterator over the parts, in the order of `read_pairs`.
    """
    x = sae.code_difference(x, walls)
    reads = sequence_reads(x, walls, sae.read_offsets, sae.cfg.padding)
    filters, norm = sae.filters, sae.cfg.scale_norm
    factor: Tensor | None = None
    if norm != "none":
        factor = (sae.convolve(reads).var(dim=-1, correction=0, keepdim=True) + NORM_EPS).rsqrt()
    if factor is not None and norm == "rescaled_layer_norm":
        factor = factor * x.std(dim=-1, correction=0, keepdim=True).unsqueeze(-2)
    for scale, place in read_pairs(sae):
        offset = sae.read_offsets[place]
        part = reads[offset] * filters[scale, place]
        if factor is not None:
            part = (part - part.mean(dim=-1, keepdim=True)) * factor[..., scale, :]
        if norm == "rescaled_layer_norm" and offset == 0:
            part = part + x.mean(dim=-1, keepdim=True)
        yield TapPart(scale, place, part * (sae.cfg.context_gain if scale else 1.0))


def read_pairs(sae: TemporalEncoder) -> list[tuple[int, int]]:
    """List the pairs of a scale and an offset that `tap_parts` goes through.

    Args:
        sae: the SAE.

    Returns:
        Pairs (index of the scale, index in `read_offsets`): those whose filter is not zero, and offset 0 of every scale.
    """
    used = (sae.filters != 0).any(dim=-1)
    used[:, 0] = True
    return [(scale, place) for scale, place in used.nonzero().tolist()]


@torch.no_grad()
def offset_contributions(
    sae: TemporalEncoder, h: Tensor, features: Int[Tensor, " feature"]
) -> Float[Tensor, "batch pos n_reads feature"]:
    """Compute what each offset of `sae.read_offsets` adds to the pre-activations of chosen features.

    Args:
        sae: the SAE.
        h: activations, of a shape that `encode` takes.
        features: indices of the features, `(feature,)`.

    Returns:
        Contributions `(batch, pos, n_reads, feature)`; their sum over offsets plus `b_enc` is the pre-activation.

    Raises:
        ConfigError: the SAE does not have such features.
    """
    (x, walls), W_enc = sae.read_contexts(h), _encoder_by_scale(sae, features)
    total = x.new_zeros(*x.shape[:2], len(sae.read_offsets), len(features))
    for part in tap_parts(sae, x, walls):
        total[:, :, part.place] += part.vector @ W_enc[part.scale]
    return total
