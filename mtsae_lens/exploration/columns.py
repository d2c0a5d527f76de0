"""Tensors as columns of a table: NaN as null, masked entries left out of lists, token numbers as their text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mtsae_lens.data.vocabularies import token_texts
from mtsae_lens.facts.records import Record, parquet_schema


def numbers(values: Tensor, kind: pa.DataType) -> pa.Array:
    """A column of numbers; NaN is null."""
    array = values.detach().cpu().numpy()
    return pa.array(array, kind, mask=np.isnan(array) if values.is_floating_point() else None)


def lists(values: Tensor | pa.Array, kept: Bool[Tensor, "row ..."], kind: pa.DataType | None = None) -> pa.ListArray:
    """A column of lists: of each row the entries that are kept, flattened; `values` are all entries, or the kept ones as an array."""
    flat = kept.flatten(1)
    ends = torch.nn.functional.pad(flat.sum(dim=1).cumsum(dim=0), (1, 0)).int().cpu().numpy()
    if isinstance(values, Tensor):
        values = pa.array(values.detach().cpu().flatten(1)[flat.cpu()].numpy(), kind)
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), values)


def all_or_none(values: Float[Tensor, "row entry"], kind: pa.DataType, given: Bool[Tensor, " row"]) -> pa.ListArray:
    """A column of lists, whole where `given` and empty elsewhere."""
    return lists(values, given.unsqueeze(1).expand(values.shape), kind)


def nullable(column: pa.ListArray) -> pa.ListArray:
    """A column of lists of floats with null in place of NaN."""
    values = pa.array(column.values.to_numpy(zero_copy_only=False), column.type.value_type, from_pandas=True)
    return pa.ListArray.from_arrays(column.offsets, values)


def nested(values: Tensor, kept: Bool[Tensor, "row entry part"], kind: pa.DataType) -> pa.ListArray:
    """A column of lists of lists."""
    inner = lists(values.flatten(0, 1), kept.flatten(0, 1), kind)
    return lists(inner, torch.ones(kept.shape[:2], dtype=torch.bool))


class TokenTexts:
    """The text of every token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, d_vocab: int) -> None:
        self.texts = pa.array(token_texts(tokenizer, range(d_vocab)), pa.string())

    def __call__(self, tokens: Int[Tensor, " token"]) -> pa.Array:
        """The texts of some tokens."""
        return self.texts.take(pa.array(tokens.detach().cpu().numpy()))

    def lists(self, tokens: Int[Tensor, "row entry"], kept: Bool[Tensor, "row entry"]) -> pa.ListArray:
        """A column of lists of texts."""
        return lists(self(tokens[kept]), kept)


def make_table(columns: dict[str, Any], record: Record) -> pa.Table:
    """Make a table of facts.

    Args:
        columns: every column of the table, by name.
        record: the table's record class, which gives the order and the types.
    """
    schema = parquet_schema(record)
    return pa.table([columns[name] for name in schema.names], schema=schema)
