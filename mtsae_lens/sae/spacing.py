"""Dilations that are learned: each scale's rate is a parameter, and its taps stand where the rate puts them.

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
"""Octaves. A tap must reach its neighbours on the half-octave grid, or no gradient could tell it where to go."""


def lag_grid(max_lag: int) -> list[int]:
    """Lags from 1 to `max_lag`, about two to the octave: 1, 2, 3, 4, 6, 8, 11, 16, ...; both ends included."""
    lags = {round(2 ** (half / 2)) for half in range(2 * max_lag.bit_length() + 1)}
    return sorted({lag for lag in lags if lag < max_lag} | {max_lag})


def spacing_weights(
    log2_dilations: Float[Tensor, " n_scales"], kernel_size: int, lags: Sequence[int], width: float = WIDTH
) -> Float[Tensor, "n_scales n_taps n_lags"]:
    """How much each tap but the first reads of every lag; sums to 1 over the lags."""
    taps = torch.arange(1, kernel_size, device=log2_dilations.device, dtype=log2_dilations.dtype)
    grid = torch.tensor(lags, device=log2_dilations.device, dtype=log2_dilations.dtype).log2()
    centres = log2_dilations[:, None] + taps.log2()[None, :]
    return torch.softmax(-((grid - centres[..., None]) ** 2) / (2 * width**2), dim=-1)


def learned_filters(
    taps: Float[Tensor, "n_scales kernel_size d_in"],
    log2_dilations: Float[Tensor, " n_scales"],
    lags: Sequence[int],
    moves: Bool[Tensor, " n_scales"],
) -> Float[Tensor, "n_scales n_reads d_in"]:
    """Filters over the offsets 0, -lags[0], -lags[1], ...; the counterpart of `lay_out`.

    A scale that does not move reads the token alone, with all its taps, as one of dilation 0 does there.
    """
    weights = spacing_weights(log2_dilations, taps.shape[1], lags) * moves[:, None, None]
    context = torch.einsum("kjl,kjd->kld", weights, taps[:, 1:])
    still = taps[:, 1:].sum(dim=1) * ~moves[:, None]
    return torch.cat([(taps[:, 0] + still).unsqueeze(1), context], dim=1)
