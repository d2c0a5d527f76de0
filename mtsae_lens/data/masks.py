"""Masks over positions, applied to activations of any shape."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor


def zero_rows(h: Float[Tensor, "batch pos *rest"], where: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch pos *rest"]:
    """Set activations to zero at some positions, heads and all.

    Args:
        h: activations, or a change of them.
        where: True for positions to set to zero; on any device.

    Returns:
        A copy. A NaN or an infinite value at these positions becomes zero too.
    """
    return h.masked_fill(where.to(h.device).view(*where.shape, *(1,) * (h.ndim - where.ndim)), 0.0)
