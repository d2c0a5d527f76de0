"""The places of the entries of a sparse `(row, d_sae)` matrix, and what can be read off such a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


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

    @cached_property
    def by_feature(self) -> Int[Tensor, " entry"]:
        """The order that sorts the entries by their feature."""
        return sorting_order(self.feature, self.shape[1])

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Put sets of entries of the same matrix one after the other; the rows of the result need not ascend."""
        filled = [part for part in parts if len(part)]
        if len(filled) == 1:  # which keeps what it knows about its order
            return filled[0]
        row, feature = (torch.cat(found) for found in zip(*((part.row, part.feature) for part in parts), strict=True))
        return cls(row, feature, parts[0].shape)

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
            features: features of each row, ascending, `(row, k)`.
            chosen: which of them to take, `(row, k)`.
            d_sae: number of features.

        Returns:
            The entries.
        """
        row, place = chosen.nonzero().unbind(dim=1)
        return cls(row, features[row, place], (features.shape[0], d_sae))

    @classmethod
    def of_flat(cls, flat: Int[Tensor, " entry"], shape: tuple[int, int]) -> Self:
        """Take entries by their place in the flattened matrix, in any order."""
        flat = flat.sort().values
        return cls(flat.div(shape[1], rounding_mode="floor"), flat % shape[1], shape)

    def where(self, chosen: Bool[Tensor, " entry"] | slice) -> Entries:
        """Return the chosen entries, in their order."""
        return Entries(self.row[chosen], self.feature[chosen], self.shape)

    def sum_of_rows(self, values: Float[Tensor, " entry"]) -> Float[Tensor, " row"]:
        """Sum the values of the entries of every row."""
        return values.new_zeros(self.shape[0]).index_add(0, self.row, values)

    def to_matrix(self, values: Float[Tensor, " entry"]) -> Float[Tensor, "row d_sae"]:
        """Make a sparse matrix (COO, coalesced), without a gradient, of the entries whose value is not zero."""
        row, feature, values = self.row, self.feature, values.detach()
        shown = values != 0
        if not shown.all():
            row, feature, values = row[shown], feature[shown], values[shown]
        return torch.sparse_coo_tensor(
            torch.stack([row, feature]), values, self.shape, is_coalesced=True, check_invariants=False
        )


_RADIX = 32_768  # so many integers torch sorts by their digits on a CPU, and fewer by comparing them, which takes three times as long


def sorting_order(numbers: Int[Tensor, " entry"], end: int) -> Int[Tensor, " entry"]:
    """Return the order that sorts numbers; equal ones stay in their order.

    Args:
        numbers: integers from 0 to `end - 1`.
        end: see above.
    """
    n = len(numbers)
    if _RADIX // 4 < n < _RADIX:
        numbers = torch.nn.functional.pad(numbers, (0, _RADIX - n), value=end)
    return numbers.argsort(stable=True)[:n]


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
