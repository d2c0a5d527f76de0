"""The temporal front end: dilated depth-wise convolutions over token positions, and the norm that follows each.

Scale k with dilation r_k reads, from every dimension of the activations on its own,

    c_k[t] = sum_j  taps[k, j] * x[t + offset(j, r_k)]            (eq. 2 of the paper, convolution)
    z_k[t] = g_k norm(c_k[t])                                     (eq. 2, normalisation; the gain g is ours)

A row of exact zeros is a *wall*: a special token, a document join, or a position that the model treats unlike all others. A
tap that would read a wall, or read across one, reads nothing. So a mask needs no second argument: it travels with the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Padding = Literal["causal", "circular", "zero"]
ScaleNorm = Literal["rescaled_layer_norm", "layer_norm", "none"]
PADDINGS: tuple[str, ...] = get_args(Padding)
SCALE_NORMS: tuple[str, ...] = get_args(ScaleNorm)

NORM_EPS = 1e-5  # as in torch.nn.LayerNorm


def tap_offsets(kernel_size: int, dilation: int, padding: Padding) -> list[int]:
    """Positions, relative to its own, that a scale reads, tap by tap: all in the past when causal, centred otherwise.

    With dilation 0 all taps read the position itself.
    """
    centre = 0 if padding == "causal" else kernel_size // 2
    return [(centre - tap) * dilation for tap in range(kernel_size)]


def receptive_field(kernel_size: int, dilations: Sequence[int], padding: Padding) -> tuple[int, int]:
    """How many positions before and after its own the encoder reads."""
    offsets = [o for dilation in dilations for o in tap_offsets(kernel_size, dilation, padding)]
    return -min(offsets), max(offsets)


def find_walls(x: Float[Tensor, "*row d_in"]) -> Bool[Tensor, "*row"]:
    """The rows that are exactly zero."""
    return (x == 0).all(dim=-1)


def _segments(walls: Bool[Tensor, "batch pos"], padding: Padding) -> Int[Tensor, "batch pos"]:
    """How many walls stand at or before each position; taps read where the number is their own.

    On a circle a wall at the context's start (BOS) does not count if it is the only one: the paper's padding wraps around it.
    """
    if padding == "circular":
        lone = walls[:, :1] & (walls.sum(dim=-1, keepdim=True) == 1)
        walls = walls & ~lone
    return walls.long().cumsum(dim=-1)


def _shift(x: Tensor, offset: int, padding: Padding) -> Tensor:
    """`out[:, t] = x[:, t + offset]`; beyond the ends zero, or the other end when circular."""
    if offset == 0:
        return x
    if padding == "circular":
        return x.roll(-offset, dims=1)
    out = torch.zeros_like(x)
    if abs(offset) < x.shape[1]:
        if offset < 0:
            out[:, -offset:] = x[:, :offset]
        else:
            out[:, :-offset] = x[:, offset:]
    return out


def read_offsets(kernel_size: int, dilations: Sequence[int], padding: Padding) -> list[int]:
    """The distinct offsets that the scales read, a position's own (0) first. The default scales have 15 taps and 6 offsets."""
    offsets = {offset for dilation in dilations for offset in tap_offsets(kernel_size, dilation, padding)}
    return [0, *sorted(offsets - {0}, reverse=True)]


def sequence_reads(
    x: Float[Tensor, "batch pos d_in"], offsets: Sequence[int], padding: Padding
) -> dict[int, Float[Tensor, "batch pos d_in"]]:
    """For each offset, what every position of whole contexts reads there; zero where a wall or an end is in the way."""
    segments = _segments(find_walls(x), padding)
    reads = {}
    for offset in offsets:
        there = _shift(segments, offset, padding)
        if padding == "circular":  # a lap around the circle passes every wall once
            laps = (torch.arange(x.shape[1], device=x.device) + offset).div(x.shape[1], rounding_mode="floor")
            there = there + laps * segments[:, -1:]
        # elsewhere _shift yields zeros beyond the ends, which no segment comparison can undo
        reads[offset] = _shift(x, offset, padding) * (there == segments).unsqueeze(-1)
    return reads


def gather_reads(
    h: Float[Tensor, "batch pos d_in"], offsets: Sequence[int], padding: Padding
) -> Callable[[Int[Tensor, " row"]], Float[Tensor, "row read_d_in"]]:
    """A function of positions of these contexts: what each reads, as one row: its own activations, then those at every other offset.

    Such rows stand for themselves, so they can be mixed across contexts like the rows of a pointwise SAE; whole contexts in a batch
    make its gradient noisier at the same size.

    Args:
        h: contexts, masked positions zero.
        offsets: from `read_offsets`.
        padding: as in the configuration.

    Returns:
        A function of flat positions, `context * n_positions + position`.
    """
    segments = _segments(find_walls(h), padding)
    n_positions = h.shape[1]

    def gather(rows: Int[Tensor, " row"]) -> Float[Tensor, "row read_d_in"]:
        context, position = rows // n_positions, rows % n_positions
        own = segments[context, position]
        reads = []
        for offset in offsets:
            laps = (position + offset).div(n_positions, rounding_mode="floor")
            place = (position + offset) % n_positions
            readable = segments[context, place] + laps * segments[context, -1] == own
            if padding != "circular":
                readable = readable & (laps == 0)
            reads.append(h[context, place] * readable.unsqueeze(-1))
        return torch.cat(reads, dim=-1)

    return gather


def lay_out(
    taps: Float[Tensor, "n_scales kernel_size d_in"], dilations: Sequence[int], padding: Padding, offsets: Sequence[int]
) -> Float[Tensor, "n_scales n_reads d_in"]:
    """The taps as filters over the offsets that are read: one value per scale, offset and dimension, zero where a scale has no tap."""
    n_scales, kernel_size, d_in = taps.shape
    places = [
        (scale, offsets.index(offset))
        for scale, dilation in enumerate(dilations)
        for offset in tap_offsets(kernel_size, dilation, padding)
    ]
    scale, read = torch.tensor(places, device=taps.device).unbind(dim=1)
    return taps.new_zeros(n_scales, len(offsets), d_in).index_put((scale, read), taps.flatten(0, 1), accumulate=True)


def temporal_convolution(
    reads: Mapping[int, Float[Tensor, "*row d_in"]],
    filters: Float[Tensor, "n_scales n_reads d_in"],
    used: Sequence[Sequence[int]],
) -> Float[Tensor, "*row n_scales d_in"]:
    """`out[..., k, :] = sum_{o in used[k]} filters[k, o] * reads[o]`: every dimension on its own.

    Sums of shifted rows, about twice as fast as `Conv1d(groups=d_in)` on a CPU, forward and backward.

    Args:
        reads: what a position reads at each offset.
        filters: over the offsets of `reads`, in their order.
        used: for every scale the offsets where its filter may differ from zero, each once.
    """
    place = {offset: number for number, offset in enumerate(reads)}
    scales = []
    for scale, offsets in enumerate(used):
        total = reads[offsets[0]] * filters[scale, place[offsets[0]]]
        for offset in offsets[1:]:
            total = total + reads[offset] * filters[scale, place[offset]]
        scales.append(total)
    return torch.stack(scales, dim=-2)


def normalize_scales(
    convolved: Float[Tensor, "*row n_scales d_in"],
    x: Float[Tensor, "*row d_in"],
    scale_norm: ScaleNorm,
    context_gain: float = 1.0,
) -> Float[Tensor, "*row n_scales d_in"]:
    """Normalise each scale's vector at each position, and multiply all scales but the first by `context_gain`.

    `layer_norm`: zero mean and unit variance over `d_in`, as in the paper; the magnitude is lost, and a linear decoder cannot
    get it back. `rescaled_layer_norm`: the same times the standard deviation plus the mean, over `d_in`, of the token's own `x[t]`,
    which puts the magnitude back: a scale that reads the token alone gives `x[t]` again. `none`: the
    convolution as it is. No learnt gain and bias: `W_enc` and `b_enc` hold them already.
    """
    z = convolved
    if scale_norm != "none":
        z = torch.nn.functional.layer_norm(convolved, convolved.shape[-1:], eps=NORM_EPS)
    if scale_norm == "rescaled_layer_norm":
        mean, std = x.mean(dim=-1, keepdim=True), x.std(dim=-1, keepdim=True, correction=0)
        z = z * std.unsqueeze(-2) + mean.unsqueeze(-2)
    if context_gain == 1.0:
        return z
    return torch.cat([z[..., :1, :], context_gain * z[..., 1:, :]], dim=-2)
