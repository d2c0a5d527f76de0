"""Whose doing a pre-activation is: exact parts by scale and by offset, which with `b_enc` sum to it.

A normalised scale is linear in its taps once its own mean and deviation are given, so the share of each offset is exact:

    z_k = gain_k * ( sum_o (c_ko - mean(c_ko)) / std(c_k) * std(x) + mean(x) ),     c_ko = filters[k, o] * x[t + o]

The mean that `rescaled_layer_norm` puts back is the token's own, so it counts for offset 0.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from mtsae_lens.sae.mtsae import TemporalEncoder
from mtsae_lens.sae.temporal import NORM_EPS, sequence_reads


def _encoder_by_scale(sae: TemporalEncoder, features: Tensor) -> Float[Tensor, "n_scales d_in feature"]:
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
    """
    z = sae.encode_scales(sae.process_sae_in(h))
    return torch.einsum("bpsd,sdf->bpsf", z, _encoder_by_scale(sae, features))


@torch.no_grad()
def offset_contributions(
    sae: TemporalEncoder, h: Tensor, features: Int[Tensor, " feature"]
) -> Float[Tensor, "batch pos n_reads feature"]:
    """What each offset that the encoder reads (`sae.read_offsets`) adds to the pre-activation of the chosen features.

    Args:
        sae: the encoder.
        h: activations, shaped as for `encode`.
        features: indices of features.
    """
    x = sae.process_sae_in(h)
    reads = sequence_reads(x, sae.read_offsets, sae.cfg.padding)
    convolved = sae.convolve(reads)
    filters, W_enc = sae.filters, _encoder_by_scale(sae, features)
    factor: Tensor | float = 1.0
    if sae.cfg.scale_norm != "none":
        factor = (convolved.var(dim=-1, correction=0, keepdim=True) + NORM_EPS).rsqrt()
    if sae.cfg.scale_norm == "rescaled_layer_norm":
        factor = factor * x.std(dim=-1, correction=0, keepdim=True).unsqueeze(-2)
    gains = torch.full((len(sae.cfg.dilations), 1), sae.cfg.context_gain, dtype=x.dtype, device=x.device)
    gains[0] = 1.0
    parts = []
    for place, offset in enumerate(sae.read_offsets):
        part = reads[offset].unsqueeze(-2) * filters[:, place]
        if sae.cfg.scale_norm != "none":
            part = (part - part.mean(dim=-1, keepdim=True)) * factor
        if sae.cfg.scale_norm == "rescaled_layer_norm" and offset == 0:
            part = part + x.mean(dim=-1, keepdim=True).unsqueeze(-2)
        parts.append(torch.einsum("bpsd,sdf->bpf", gains * part, W_enc))
    return torch.stack(parts, dim=2)
