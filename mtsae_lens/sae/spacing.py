"""Learned dilations: the dilation of each scale is a parameter, and the taps of the scale move with it.

Dilated convolution with learnable spacings (Khalfaoui-Hassani et al. 2022, arXiv 2112.03740) on a logarithmic grid of lags, with the
Gaussian interpolation of Khalfaoui-Hassani et al. 2023 (arXiv 2306.00817): tap j of scale k reads

    sum_l w_kj(l) * x[t - l],    w_kj(l) ~ exp(-(log2 l - log2 j - rho_k)^2 / (2 * WIDTH^2)),    sum_l w_kj(l) = 1

for lags l on the grid, where `2 ** rho_k` is the dilation of scale k. Tap 0 reads the token itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

WIDTH = 0.35
"""Width of a tap in octaves. A tap must reach its neighbors on the half-octave grid, or it would have no gradient to follow."""


def lag_grid(max_lag: int) -> list[int]:
    """Make the grid of lags, about two for each octave: 1, 2, 3, 4, 6, 8, 11, 16, ...

    Args:
        max_lag: the largest lag.

    Returns:
        Ascending lags from 1 to `max_lag`, both included.
    """
    lags = {round(2 ** (half / 2)) for half in range(2 * max_lag.bit_length() + 1)}
    return sorted({lag for lag in lags if lag < max_lag} | {max_lag})


def spacing_weights(
    log2_dilations: Float[Tensor, " n_scales"], kernel_size: int, lags: Sequence[int], width: float = WIDTH
) -> Float[Tensor, "n_scales n_taps n_lags"]:
    """Compute how much each tap but the first reads of every lag.

    Args:
        log2_dilations: base-2 logarithm of each dilation, `(n_scales,)`.
        kernel_size: number of taps of a scale, the first included.
        lags: the grid of lags.
        width: width of a tap in octaves.

    Returns:
        Weights `(n_scales, kernel_size - 1, n_lags)`, which sum to 1 over the lags.
    """
    taps = torch.arange(1, kernel_size, device=log2_dilations.device, dtype=log2_dilations.dtype)
    grid = torch.tensor(lags, device=log2_dilations.device, dtype=log2_dilations.dtype).log2()
    centers = log2_dilations[:, None] + taps.log2()[None, :]
    return torch.softmax(-((grid - centers[..., None]) ** 2) / (2 * width**2), dim=-1)


def learned_filters(
    taps: Float[Tensor, "n_scales kernel_size d_in"],
    log2_dilations: Float[Tensor, " n_scales"],
    lags: Sequence[int],
    moves: Bool[Tensor, " n_scales"],
) -> Float[Tensor, "n_scales n_reads d_in"]:
    """Compute the filter of every scale over the offsets 0, -lags[0], -lags[1], ...; the counterpart of `lay_out`.

    Args:
        taps: the taps, `(n_scales, kernel_size, d_in)`.
        log2_dilations: base-2 logarithm of each dilation, `(n_scales,)`.
        lags: the grid of lags.
        moves: whether each scale has a dilation to learn, `(n_scales,)`. One that has none (dilation 0) reads the token alone with all its
            taps.

    Returns:
        Filters `(n_scales, 1 + n_lags, d_in)`.
    """
    weights = spacing_weights(log2_dilations, taps.shape[1], lags) * moves[:, None, None]
    context = torch.einsum("kjl,kjd->kld", weights, taps[:, 1:])
    still = taps[:, 1:].sum(dim=1) * ~moves[:, None]
    return torch.cat([(taps[:, 0] + still).unsqueeze(1), context], dim=1)
