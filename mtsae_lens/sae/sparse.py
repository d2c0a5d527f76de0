"""Compute with the few entries of a `(row, d_sae)` matrix that are not zero, instead of with all of it.

Of 16,384 features 32 are active at a position, so a product with dense feature activations multiplies by zero 99.8% of the time. With S the
sparse matrix of feature activations, and G that of the gradients of their pre-activations,

    sae_out = S @ W_dec,        dW_dec = S' @ d sae_out,        d encoder_in = G @ W_enc',        dW_enc = encoder_in' @ G

Each is a weighted sum of rows of a dense matrix (`sum_rows`), for which torch has a fast operation on CPUs and GPUs: `embedding_bag`.
Only the encoder's forward product stays dense, because it decides which features are active.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

from mtsae_lens.sae.entries import Entries, sorting_order
from mtsae_lens.sae.large_tensors import make_empty


def sum_rows(
    matrix: Float[Tensor, "source width"],
    source: Int[Tensor, " entry"],
    target: Int[Tensor, " entry"],
    weights: Float[Tensor, " entry"],
    n_targets: int,
    order: Int[Tensor, " entry"] | None,
) -> Float[Tensor, "target width"]:
    """Compute `out[t] = sum_{i: target[i] = t} weights[i] * matrix[source[i]]`.

    Args:
        matrix: the rows to sum.
        source: the row that each entry takes.
        target: the row of the result that each entry is added to.
        weights: the factor of each entry.
        n_targets: number of rows of the result.
        order: the order that sorts `target`; None if `target` ascends.

    Returns:
        The sums; zero where no entry is added.
    """
    if order is not None:
        source, target, weights = source[order], target[order], weights[order]
    starts = torch.searchsorted(target, torch.arange(n_targets, device=target.device))
    return torch.nn.functional.embedding_bag(source, matrix, starts, per_sample_weights=weights.to(matrix.dtype), mode="sum")


class _EncodeEntries(torch.autograd.Function):
    """Give chosen pre-activations, which are computed already, a gradient that is zero everywhere else."""

    @staticmethod
    @override
    def forward(
        ctx: Any,
        encoder_in: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        hidden_pre: Tensor,
        row: Tensor,
        feature: Tensor,
        by_row: Tensor | None,
        by_feature: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(encoder_in, W_enc, row, feature, by_row, by_feature)
        ctx.dtypes = encoder_in.dtype, b_enc.dtype
        return hidden_pre[row, feature].to(W_enc.dtype)

    @staticmethod
    @once_differentiable
    @override
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        encoder_in, W_enc, row, feature, by_row, by_feature = ctx.saved_tensors
        gradient, (n_rows, d_sae) = gradients[0], (encoder_in.shape[0], W_enc.shape[1])
        d_in = d_W = d_b = None
        if ctx.needs_input_grad[0]:
            d_in = sum_rows(W_enc.T.contiguous(), feature, row, gradient, n_rows, by_row).to(ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            d_W = sum_rows(encoder_in.to(W_enc.dtype), row, feature, gradient, d_sae, by_feature).T
        if ctx.needs_input_grad[2]:
            d_b = gradient.new_zeros(d_sae).index_add_(0, feature, gradient).to(ctx.dtypes[1])
        return d_in, d_W, d_b, None, None, None, None, None


class _GiveGradient(torch.autograd.Function):
    """Pass sums of rows of a matrix on, and give the matrix their gradient, which `embedding_bag` computes more slowly."""

    @staticmethod
    @override
    def forward(
        ctx: Any, sums: Tensor, matrix: Tensor, source: Tensor, target: Tensor, weights: Tensor, by_source: Tensor
    ) -> Tensor:
        ctx.save_for_backward(source, target, weights, by_source)
        ctx.n_sources = len(matrix)
        return sums.view_as(sums)

    @staticmethod
    @once_differentiable
    @override
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        source, target, weights, by_source = ctx.saved_tensors
        d_matrix = sum_rows(gradients[0], target, source, weights, ctx.n_sources, by_source)
        return gradients[0], d_matrix, None, None, None, None


def encode_entries(
    encoder_in: Float[Tensor, "row encoder_d_in"],
    W_enc: Float[Tensor, "encoder_d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    hidden_pre: Float[Tensor, "row d_sae"],
    parts: Sequence[Entries],
) -> list[Float[Tensor, " entry"]]:
    """Return chosen entries of `hidden_pre = encoder_in @ W_enc + b_enc`, with a gradient that costs as much as there are entries.

    The gradient of `W_enc` needs no copy if `W_enc` is column-major (`column_major`).

    Args:
        encoder_in: input of the encoder.
        W_enc: encoder.
        b_enc: bias of the encoder.
        hidden_pre: the pre-activations, without a gradient.
        parts: sets of entries; one may be in several.

    Returns:
        The pre-activations of each set.
    """
    entries = Entries.join(parts)
    by_row = sorting_order(entries.row, entries.shape[0]) if len(entries) > max(map(len, parts)) else None  # one part ascends
    values: Tensor = _EncodeEntries.apply(
        encoder_in, W_enc, b_enc, hidden_pre, entries.row, entries.feature, by_row, entries.by_feature
    )
    return list(values.split([len(part) for part in parts]))


def decode_entries(
    values: Float[Tensor, " entry"],
    entries: Entries,
    W_dec: Float[Tensor, "d_sae d_in"],
    group: Int[Tensor, " d_sae"] | None = None,
    n_groups: int = 1,
) -> Float[Tensor, "group_row d_in"]:
    """Compute `S @ W_dec` for the sparse matrix S of some values; without `b_dec`.

    Args:
        values: the values of the entries.
        entries: where they stand.
        W_dec: decoder.
        group: the group of each feature; groups are decoded separately. None for a single group.
        n_groups: number of groups.

    Returns:
        Rows of the width of the decoder, those of one group after those of the other.
    """
    n_rows, target, by_target = entries.shape[0], entries.row, None
    if group is not None:
        target = target + n_rows * group[entries.feature]
        by_target = sorting_order(target, n_groups * n_rows)
    sums = sum_rows(W_dec.detach(), entries.feature, target, values, n_groups * n_rows, by_target)
    decoded: Tensor = _GiveGradient.apply(sums, W_dec, entries.feature, target, values.detach(), entries.by_feature)
    return decoded


def apply_encoder(
    encoder_in: Float[Tensor, "*row encoder_d_in"], W_enc: Float[Tensor, "encoder_d_in d_sae"], b_enc: Float[Tensor, " d_sae"]
) -> Float[Tensor, "*row d_sae"]:
    """Compute the pre-activations `encoder_in @ W_enc + b_enc`.

    Args:
        encoder_in: input of the encoder.
        W_enc: encoder.
        b_enc: bias of the encoder.

    Returns:
        The pre-activations, if no gradient is needed and they are many in large pages of memory.
    """
    differentiated = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (encoder_in, W_enc, b_enc))
    if differentiated or torch.is_autocast_enabled(encoder_in.device.type):
        return torch.nn.functional.linear(encoder_in, W_enc.T, b_enc)  # `@` and a sum would take another pass
    rows = encoder_in.flatten(0, -2)
    hidden_pre = make_empty((len(rows), len(b_enc)), rows)
    return torch.addmm(b_enc, rows, W_enc, out=hidden_pre).view(*encoder_in.shape[:-1], len(b_enc))


_MOST_FEW, _MANY, _WIDE = 1 / 32, 2**18, 128
"""`decode_few` computes with the active features alone if they are at most this share of at least so many features and positions, and the
decoder is at least so wide. On one core, 2,048 positions and 4,096 features, 32 of them active, it takes 20 ms of 31 at a width of 128, and 24
of 98 at 512; with 128 active 30 of 32 and 40 of 101."""


def decode_few(feature_acts: Float[Tensor, "*row d_sae"], W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "*row d_in"]:
    """Compute `feature_acts @ W_dec`: on a CPU, if no gradient is needed, from the active features alone where they are few.

    Args:
        feature_acts: feature activations, a dense matrix.
        W_dec: decoder.

    Returns:
        Rows of the width of the decoder.
    """
    differentiated = torch.is_grad_enabled() and (feature_acts.requires_grad or W_dec.requires_grad)
    known = feature_acts.device.type == "cpu" and feature_acts.dtype == W_dec.dtype == torch.float32
    if differentiated or not known or feature_acts.numel() < _MANY or W_dec.shape[1] < _WIDE:
        return feature_acts @ W_dec
    active = feature_acts.detach().numpy() != 0  # numpy finds the few in a mask three times as fast as `nonzero`
    if np.count_nonzero(active) > _MOST_FEW * active.size:
        return feature_acts @ W_dec
    places = torch.from_numpy(np.flatnonzero(active))
    row, feature = places.div(len(W_dec), rounding_mode="floor"), places % len(W_dec)
    n_rows = feature_acts.shape[:-1].numel()
    return sum_rows(W_dec, feature, row, feature_acts.take(places), n_rows, None).unflatten(0, feature_acts.shape[:-1])


def column_major(matrix: Tensor) -> Tensor:
    """Lay out a matrix in memory by columns; its values and its shape stay the same."""
    return matrix.T.contiguous().T


def is_column_major(matrix: Tensor) -> bool:
    """Return whether a matrix is laid out in memory by columns, and not by rows."""
    return matrix.ndim == 2 and not matrix.is_contiguous() and matrix.T.is_contiguous()
