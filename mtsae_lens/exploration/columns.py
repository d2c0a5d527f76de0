"""Turn tensors into columns of a table: NaN becomes null, masked entries are left out of lists, token ids become their text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mtsae_lens.data.vocabularies import token_texts
from mtsae_lens.facts.columns import parquet_schema


def make_numbers(values: Tensor, kind: pa.DataType) -> pa.Array:
    """Make a column of numbers; NaN becomes null.

    Args:
        values: one number per row.
        kind: Arrow type of the column.
    """
    array = values.detach().cpu().numpy()
    return pa.array(array, kind, mask=np.isnan(array) if values.is_floating_point() else None)


def make_lists(values: Tensor | pa.Array, kept: Bool[Tensor, "row ..."], kind: pa.DataType | None = None) -> pa.ListArray:
    """Make a column of lists.

    Args:
        values: all entries, `(row, ...)`, or the kept entries as a flat array.
        kept: which entries of each row are in its list; further axes are flattened.
        kind: Arrow type of the entries; needed if `values` is a tensor.
    """
    flat = kept.flatten(1)
    ends = torch.nn.functional.pad(flat.sum(dim=1).cumsum(dim=0), (1, 0)).int().cpu().numpy()
    if isinstance(values, Tensor):
        values = pa.array(values.detach().cpu().flatten(1)[flat.cpu()].numpy(), kind)
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), values)


def make_whole_lists(values: Float[Tensor, "row entry"], kind: pa.DataType, given: Bool[Tensor, " row"]) -> pa.ListArray:
    """Make a column of lists that are complete for some rows, and empty for the others.

    Args:
        values: the entries of each row's list.
        kind: Arrow type of the entries.
        given: mask of the rows whose list is complete.
    """
    return make_lists(values, given.unsqueeze(1).expand(values.shape), kind)


def replace_nan(column: pa.ListArray) -> pa.ListArray:
    """Replace NaN by null in a column of lists of floats.

    Args:
        column: the column.
    """
    values = pa.array(column.values.to_numpy(zero_copy_only=False), column.type.value_type, from_pandas=True)
    return pa.ListArray.from_arrays(column.offsets, values)


def make_nested_lists(values: Tensor, kept: Bool[Tensor, "row entry part"], kind: pa.DataType) -> pa.ListArray:
    """Make a column of lists of lists.

    Args:
        values: all entries, `(row, entry, part)`.
        kept: mask of the entries that are in the inner lists.
        kind: Arrow type of the entries.
    """
    inner = make_lists(values.flatten(0, 1), kept.flatten(0, 1), kind)
    return make_lists(inner, torch.ones(kept.shape[:2], dtype=torch.bool))


class TokenTexts:
    """The text of every token of a vocabulary.

    Args:
        tokenizer: the tokenizer of the vocabulary.
        d_vocab: number of tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, d_vocab: int) -> None:
        self.texts = pa.array(token_texts(tokenizer, range(d_vocab)), pa.string())

    def __call__(self, tokens: Int[Tensor, " token"]) -> pa.Array:
        """Return the texts of some tokens as an Arrow array.

        Args:
            tokens: token ids.
        """
        return self.texts.take(pa.array(tokens.detach().cpu().numpy()))

    def make_lists(self, tokens: Int[Tensor, "row entry"], kept: Bool[Tensor, "row entry"]) -> pa.ListArray:
        """Make a column of lists of token texts.

        Args:
            tokens: token ids of each row.
            kept: mask of the tokens that are in the lists.
        """
        return make_lists(self(tokens[kept]), kept)


def make_table(columns: dict[str, Any], record: type[Any]) -> pa.Table:
    """Make a table of facts.

    Args:
        columns: every column of the table, by name.
        record: the table's record class, which gives the order and the types.
    """
    schema = parquet_schema(record)
    return pa.table([columns[name] for name in schema.names], schema=schema)
