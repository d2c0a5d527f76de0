"""Masks over positions: applied to activations of any shape, and found in blocks of activations, which mark masked positions by zeros."""

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


def find_masked(h: Float[Tensor, "batch pos width"]) -> Bool[Tensor, "batch pos"]:
    """Return which positions of a block are masked: those whose activations are exactly zero, as a source or a cache leaves them.

    Args:
        h: contexts of a block. A NaN is no zero.
    """
    return (h.amax(dim=-1) == 0) & (h.amin(dim=-1) == 0)  # many times as fast as a norm on a CPU
