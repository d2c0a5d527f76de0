"""Compute moments of what taps read, and from them the statistics of every scale's convolution (table 1).

The convolution of a scale is `c_d[t] = sum_j w_jd r_jd[t]`, where `r_jd[t] = x_d[t + offset_j]`, or 0 if that position cannot be read.
Over kept positions and all dimensions,

    mean  = mean_d sum_j w_jd E_t[r_jd]
    std^2 = mean_d sum_ij w_id w_jd E_t[r_id r_jd] - mean^2

so thousands of draws of the taps need only one pass over the activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mtsae_lens.experiments.paper.results import ScaleMoments
from mtsae_lens.sae.temporal import Padding, sequence_reads, tap_offsets
from mtsae_lens.sae.temporal_encoder import TemporalEncoder


@dataclass(frozen=True, eq=False)
class TapMoments:
    """First and second moments of what each tap reads, over kept positions."""

    mean: Float[Tensor, "n_scales kernel_size d_in"]
    second: Float[Tensor, "n_scales kernel_size kernel_size d_in"]
    n_rows: int


def tap_moments(
    x: Float[Tensor, "n pos d_in"],
    walls: Bool[Tensor, "n pos"],
    dilations: Sequence[int],
    kernel_size: int,
    padding: Padding,
) -> TapMoments:
    """Compute the moments of what taps read on whole contexts. Positions that are walls are left out, and reading a wall gives 0.

    Args:
        x: activations of whole contexts, zero at walls.
        walls: the positions that are walls.
        dilations: dilations of the scales.
        kernel_size: taps per scale.
        padding: what a tap reads beyond the ends of a context.
    """
    keep = ~walls
    offsets = [tap_offsets(kernel_size, dilation, padding) for dilation in dilations]
    every = sorted({offset for scale in offsets for offset in scale})
    reads = {offset: read[keep] for offset, read in sequence_reads(x, walls, every, padding).items()}
    mean = torch.stack([torch.stack([reads[o].mean(dim=0) for o in scale]) for scale in offsets])
    second = torch.stack(
        [torch.stack([torch.stack([(reads[a] * reads[b]).mean(dim=0) for b in scale]) for a in scale]) for scale in offsets]
    )
    return TapMoments(mean, second, int(keep.sum()))


def convolution_mean(
    taps: Float[Tensor, "draw n_scales kernel_size d_in"], moments: TapMoments
) -> Float[Tensor, "draw n_scales"]:
    """Compute the mean of each scale's convolution over kept positions and dimensions.

    Args:
        taps: weights of the taps, one set per draw.
        moments: moments of what the taps read.
    """
    return torch.einsum("nsjd,sjd->ns", taps, moments.mean) / taps.shape[-1]


def convolution_std(
    taps: Float[Tensor, "draw n_scales kernel_size d_in"], moments: TapMoments
) -> Float[Tensor, "draw n_scales"]:
    """Compute the standard deviation of each scale's convolution over kept positions and dimensions, with the correction of `Tensor.std`.

    Args:
        taps: weights of the taps, one set per draw.
        moments: moments of what the taps read.
    """
    d_in = taps.shape[-1]
    power = torch.einsum("nsid,sijd,nsjd->ns", taps, moments.second, taps) / d_in
    mean = convolution_mean(taps, moments)
    n = moments.n_rows * d_in
    return ((power - mean.pow(2)).clamp(min=0) * (n / (n - 1))).sqrt()


@torch.no_grad()
def scale_statistics(sae: TemporalEncoder, h: Float[Tensor, "n pos d_in"]) -> dict[str, ScaleMoments]:
    """Compute mean and standard deviation of each scale's convolution on whole contexts.

    Args:
        sae: the encoder.
        h: activations of whole contexts.

    Returns:
        Moments by dilation.
    """
    cfg = sae.cfg
    moments = tap_moments(*sae.read_contexts(h), cfg.dilations, cfg.kernel_size, cfg.padding)
    taps = sae.taps.detach().unsqueeze(0)
    means, stds = convolution_mean(taps, moments)[0], convolution_std(taps, moments)[0]
    return {
        str(dilation): ScaleMoments(float(mean), float(std))
        for dilation, mean, std in zip(cfg.dilations, means, stds, strict=True)
    }
