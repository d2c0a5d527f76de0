"""The temporal convolution of gathered rows, in which every row holds all that its position reads (`gather_reads`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override


class _ConvolveReads(torch.autograd.Function):
    """`temporal_convolution` of centered rows, with a gradient for their center and none for each of them."""

    @staticmethod
    @override
    def forward(
        ctx: Any, filters: Tensor, center: Tensor, x: Tensor, readable: Tensor, used: Sequence[Sequence[int]]
    ) -> Tensor:
        ctx.save_for_backward(filters, x, readable)
        ctx.used = used
        out = x.new_empty(len(x), len(filters), x.shape[-1])
        for scale, places in enumerate(used):
            torch.mul(x[:, places[0]], filters[scale, places[0]], out=out[:, scale])
            for place in places[1:]:
                out[:, scale].addcmul_(x[:, place], filters[scale, place])
        return out

    @staticmethod
    @once_differentiable
    @override
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        filters, x, readable = ctx.saved_tensors
        gradient = gradients[0]
        d_filters = torch.zeros_like(filters)
        for scale, places in enumerate(ctx.used):
            for place in places:
                torch.sum(gradient[:, scale] * x[:, place], dim=0, out=d_filters[scale, place])
        d_center = None
        if ctx.needs_input_grad[1]:
            sums = (readable.T.to(gradient.dtype) @ gradient.flatten(1)).view(x.shape[1], len(filters), -1)
            d_center = -(sums.transpose(0, 1) * filters).sum(dim=(0, 1))
        return d_filters, d_center, None, None, None


def convolve_gathered(
    h: Float[Tensor, "row n_reads d_in"],
    walls: Bool[Tensor, "row n_reads"],
    center: Float[Tensor, " d_in"],
    filters: Float[Tensor, "n_scales n_reads d_in"],
    used: Sequence[Sequence[int]],
) -> Float[Tensor, "row n_scales d_in"]:
    """Compute `temporal_convolution` of `h - center`, zero at walls, for what `gather_reads` returns.

    The rows need no gradient, and that of `center` is a sum over them, so the backward pass never computes one for every row.

    Args:
        h: what every row reads at each offset, zero where it reads nothing.
        walls: where that is.
        center: what is subtracted from every read, `(d_in,)`.
        filters: the filter of every scale.
        used: for every scale, the places of the offsets where its filter may differ from zero, each once.

    Returns:
        Vectors `(row, n_scales, d_in)`.
    """
    readable = ~walls
    x = torch.addcmul(h, readable.unsqueeze(-1).to(h.dtype), center.detach(), value=-1)
    convolved: Tensor = _ConvolveReads.apply(filters, center, x, readable, used)
    return convolved
