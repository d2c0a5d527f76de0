"""Losses that keep the scales apart."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def cosine_separation(z: Float[Tensor, "*row n_scales d_in"], keep: Bool[Tensor, "*row"]) -> Float[Tensor, ""]:
    """`1 / (K (K - 1)) * sum_{i != j} max(0, cos(z_i, z_j))`, averaged over the positions to keep (eq. 4 of the paper).

    0 when the scales are orthogonal or opposed, 1 when they are one; 0 for a single scale.
    """
    n_scales = z.shape[-2]
    if n_scales == 1 or not keep.any():
        return z.new_zeros(())
    directions = torch.nn.functional.normalize(z[keep], dim=-1)
    cosines = torch.einsum("rid,rjd->rij", directions, directions)
    off_diagonal = ~torch.eye(n_scales, dtype=torch.bool, device=z.device)
    return cosines[:, off_diagonal].clamp(min=0).mean()
