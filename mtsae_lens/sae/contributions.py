"""Whose doing a pre-activation is: exact parts by scale and by offset, which with `b_enc` sum to it.

A normalised scale is linear in its taps once its own mean and deviation are given, so the share of each offset is exact:

    z_k = gain_k * ( sum_o (c_ko - mean(c_ko)) / std(c_k) * std(x) + mean(x) ),     c_ko = filters[k, o] * x[t + o]

The mean that `rescaled_layer_norm` puts back is the token's own, so it counts for offset 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from mtsae_lens.errors import ConfigError
from mtsae_lens.sae.mtsae import TemporalEncoder
from mtsae_lens.sae.temporal import NORM_EPS, sequence_reads


@dataclass(frozen=True)
class TapPart:
    """What one scale takes from one offset."""

    scale: int
    place: int  # in `read_offsets`
    vector: Float[Tensor, "batch pos d_in"]


def _encoder_by_scale(sae: TemporalEncoder, features: Tensor) -> Float[Tensor, "n_scales d_in feature"]:
    features = torch.as_tensor(features, device=sae.W_enc.device)
    if features.ndim != 1 or ((features < 0) | (features >= sae.cfg.d_sae)).any():
        raise ConfigError(
            f"features are indices from 0 to {sae.cfg.d_sae - 1} in a row, such as torch.tensor([3, 14]); got {features.tolist()}"
        )
    return rearrange(sae.W_enc[:, features], "(scale d_in) feature -> scale d_in feature", scale=len(sae.cfg.dilations))


@torch.no_grad()
def scale_contributions(
    sae: TemporalEncoder, h: Tensor, features: Int[Tensor, " feature"]
) -> Float[Tensor, "batch pos n_scales feature"]:
    """What each scale adds to the pre-activation of the chosen features.

    Args:
        sae: the encoder.
        h: activations, shaped as for `encode`.
        features: indices of features.

    Raises:
        ConfigError: features that the SAE does not have.
    """
    z = sae.encode_scales(sae.process_sae_in(h))
    return torch.einsum("bpsd,sdf->bpsf", z, _encoder_by_scale(sae, features))


@torch.no_grad()
def tap_parts(sae: TemporalEncoder, x: Float[Tensor, "batch pos d_in"]) -> Iterator[TapPart]:
    """What each (scale, offset) that is read adds to the scale's vector, one after another, so that no more than one need be held.

    `sum_o part_ko = z_k` exactly, so parts times `W_enc` plus `b_enc` are the pre-activations.

    Args:
        sae: the encoder.
        x: the output of `process_sae_in`.
    """
    reads = sequence_reads(x, sae.read_offsets, sae.cfg.padding)
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
    """The (scale, place in `read_offsets`) of `tap_parts`, in its order: those with a filter, and offset 0 of every scale."""
    used = (sae.filters != 0).any(dim=-1)
    used[:, 0] = True
    return [(scale, place) for scale, place in used.nonzero().tolist()]


@torch.no_grad()
def offset_contributions(
    sae: TemporalEncoder, h: Tensor, features: Int[Tensor, " feature"]
) -> Float[Tensor, "batch pos n_reads feature"]:
    """What each offset that the encoder reads (`sae.read_offsets`) adds to the pre-activation of the chosen features.

    Args:
        sae: the encoder.
        h: activations, shaped as for `encode`.
        features: indices of features.

    Raises:
        ConfigError: features that the SAE does not have.
    """
    x, W_enc = sae.process_sae_in(h), _encoder_by_scale(sae, features)
    total = x.new_zeros(*x.shape[:2], len(sae.read_offsets), len(features))
    for part in tap_parts(sae, x):
        total[:, :, part.place] += part.vector @ W_enc[part.scale]
    return total
