"""Compute with the few entries of a `(row, d_sae)` matrix that are not zero, instead of with all of it.

Of 16,384 features 32 are active at a position, so a product with dense feature activations multiplies by zero 99.8% of the time. With S the
sparse matrix of feature activations, and G that of the gradients of their pre-activations,

    sae_out = S @ W_dec,        dW_dec = S' @ d sae_out,        d encoder_in = G @ W_enc',        dW_enc = encoder_in' @ G

Each is a weighted sum of rows of a dense matrix (`sum_rows`), for which torch has a fast operation on CPUs and GPUs: `embedding_bag`.
Only the encoder's forward product stays dense, because it decides which features are active.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override


@dataclass(frozen=True, eq=False)
class Entries:
    """The places of some entries of a `(row, d_sae)` matrix."""

    row: Int[Tensor, " entry"]
    """Row of each entry, ascending."""
    feature: Int[Tensor, " entry"]
    """Feature of each entry, ascending in every row."""
    shape: tuple[int, int]
    """Shape of the matrix."""

    def __len__(self) -> int:
        return len(self.row)

    @classmethod
    def of_mask(cls, mask: Bool[Tensor, "row d_sae"]) -> Self:
        """Take the entries where a mask is true."""
        row, feature = mask.nonzero().unbind(dim=1)
        return cls(row, feature, (mask.shape[0], mask.shape[1]))

    @classmethod
    def of_few(cls, mask: Bool[Tensor, "row d_sae"], most: int) -> Self | None:
        """Take the entries where a mask is true, if there are at most so many; otherwise return None."""
        return cls.of_mask(mask) if int(mask.sum()) <= most else None

    @classmethod
    def of_features(cls, features: Int[Tensor, "row k"], chosen: Bool[Tensor, "row k"], d_sae: int) -> Self:
        """Take the same number of features in every row, and of them those that are chosen.

        Args:
            features: features of each row, in any order, `(row, k)`.
            chosen: which of them to take, `(row, k)`.
            d_sae: number of features.

        Returns:
            The entries.
        """
        features, order = features.sort(dim=-1)
        chosen = chosen.gather(-1, order)
        row, place = chosen.nonzero().unbind(dim=1)
        return cls(row, features[row, place], (features.shape[0], d_sae))

    @classmethod
    def of_flat(cls, flat: Int[Tensor, " entry"], shape: tuple[int, int]) -> Self:
        """Take entries by their place in the flattened matrix, in any order."""
        flat = flat.sort().values
        return cls(flat.div(shape[1], rounding_mode="floor"), flat % shape[1], shape)

    def where(self, chosen: Bool[Tensor, " entry"]) -> Entries:
        """Return the chosen entries."""
        return Entries(self.row[chosen], self.feature[chosen], self.shape)

    def sum_of_rows(self, values: Float[Tensor, " entry"]) -> Float[Tensor, " row"]:
        """Sum the values of the entries of every row."""
        return values.new_zeros(self.shape[0]).index_add(0, self.row, values)

    def to_matrix(self, values: Float[Tensor, " entry"]) -> Float[Tensor, "row d_sae"]:
        """Make a sparse matrix (COO, coalesced), without a gradient, of the entries whose value is not zero."""
        shown = values.detach() != 0
        places = torch.stack([self.row[shown], self.feature[shown]])
        return torch.sparse_coo_tensor(places, values.detach()[shown], self.shape, is_coalesced=True, check_invariants=False)


def sum_rows(
    matrix: Float[Tensor, "source width"],
    source: Int[Tensor, " entry"],
    target: Int[Tensor, " entry"],
    weights: Float[Tensor, " entry"],
    n_targets: int,
) -> Float[Tensor, "target width"]:
    """Compute `out[t] = sum_{i: target[i] = t} weights[i] * matrix[source[i]]`, differentiable in `matrix` and `weights`.

    Args:
        matrix: the rows to sum.
        source: the row that each entry takes.
        target: the row of the result that each entry is added to, in any order.
        weights: the factor of each entry.
        n_targets: number of rows of the result.

    Returns:
        The sums; zero where no entry is added.
    """
    order = target.argsort(stable=True)
    starts = torch.searchsorted(target[order], torch.arange(n_targets, device=target.device))
    return torch.nn.functional.embedding_bag(
        source[order], matrix, starts, per_sample_weights=weights[order].to(matrix.dtype), mode="sum"
    )


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
    ) -> Tensor:
        ctx.save_for_backward(encoder_in, W_enc, row, feature)
        ctx.dtypes = encoder_in.dtype, b_enc.dtype
        return hidden_pre[row, feature].to(W_enc.dtype)

    @staticmethod
    @once_differentiable
    @override
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        encoder_in, W_enc, row, feature = ctx.saved_tensors
        gradient, (n_rows, d_sae) = gradients[0], (encoder_in.shape[0], W_enc.shape[1])
        d_in = d_W = d_b = None
        if ctx.needs_input_grad[0]:
            d_in = sum_rows(W_enc.T.contiguous(), feature, row, gradient, n_rows).to(ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            d_W = sum_rows(encoder_in.to(W_enc.dtype), row, feature, gradient, d_sae).T
        if ctx.needs_input_grad[2]:
            d_b = gradient.new_zeros(d_sae).index_add_(0, feature, gradient).to(ctx.dtypes[1])
        return d_in, d_W, d_b, None, None, None


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
    row = torch.cat([part.row for part in parts])
    feature = torch.cat([part.feature for part in parts])
    values: Tensor = _EncodeEntries.apply(encoder_in, W_enc, b_enc, hidden_pre, row, feature)
    return list(values.split([len(part) for part in parts]))


def decode_entries(
    values: Float[Tensor, " entry"], entries: Entries, W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "row d_in"]:
    """Compute `S @ W_dec` for the sparse matrix S of some values; without `b_dec`.

    Args:
        values: the values of the entries.
        entries: where they stand.
        W_dec: decoder.

    Returns:
        Rows of the width of the decoder.
    """
    return sum_rows(W_dec, entries.feature, entries.row, values, entries.shape[0])


def largest_entries(values: Float[Tensor, "row d_sae"], n: int) -> Int[Tensor, " entry"]:
    """Return the places, in the flattened matrix, of the `n` largest of the positive values; of all of them, if there are fewer.

    `torch.topk` would partly sort all values. The values above a bound that a sample of them suggests are few, and if there are at least `n`
    of them, the `n` largest are among them.

    Args:
        values: the matrix.
        n: how many entries to take.

    Returns:
        Their places, in any order.
    """
    flat = values.flatten()
    sample = flat[:: max(1, len(flat) // _SAMPLE)]
    expected = n * len(sample) / len(flat)
    n_above = min(len(sample), int(1.5 * expected + 10 * expected**0.5) + 10)  # far above what chance can take away
    bound = sample.topk(n_above).values[-1].clamp(min=0)
    candidates = (~(flat <= bound)).nonzero().squeeze(1)  # a NaN must not vanish
    if len(candidates) < n:
        candidates = (~(flat <= 0)).nonzero().squeeze(1)
    if len(candidates) <= n:
        return candidates
    return candidates[flat[candidates].topk(n, sorted=False).indices]


_SAMPLE = 262_144  # values, from which the bound is estimated: sorting them takes a few milliseconds


def column_major(matrix: Tensor) -> Tensor:
    """Lay out a matrix in memory by columns; its values and its shape stay the same."""
    return matrix.T.contiguous().T


def is_column_major(matrix: Tensor) -> bool:
    """Return whether a matrix is laid out in memory by columns, and not by rows."""
    return matrix.ndim == 2 and not matrix.is_contiguous() and matrix.T.is_contiguous()


def firing_counts_of(feature_acts: Float[Tensor, "row d_sae"]) -> Int[Tensor, " d_sae"]:
    """Count the rows in which each feature is active.

    Args:
        feature_acts: feature activations, a dense or a sparse (COO) matrix.

    Returns:
        The counts, `(d_sae,)`.
    """
    if not feature_acts.is_sparse:
        return (feature_acts != 0).sum(dim=0)
    feature_acts = feature_acts.coalesce()
    features = feature_acts.indices()[1][feature_acts.values() != 0]
    return torch.bincount(features, minlength=feature_acts.shape[1])


def select_rows(feature_acts: Float[Tensor, "row d_sae"], kept: Bool[Tensor, " row"]) -> Float[Tensor, "kept_row d_sae"]:
    """Select rows of a dense or a sparse (COO) matrix by a mask."""
    if not feature_acts.is_sparse:
        return feature_acts if kept.all() else feature_acts[kept]
    return feature_acts.index_select(0, kept.nonzero().squeeze(1))
