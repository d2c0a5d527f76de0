"""`texts.parquet`: one row per context of the text view."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mtsae_lens.data.contexts import TokenTable
from mtsae_lens.exploration.columns import TokenTexts, lists, nested, table
from mtsae_lens.exploration.schema import TEXTS
from mtsae_lens.exploration.texts import read_texts
from mtsae_lens.files import whole_file
from mtsae_lens.splice.hooked_lm import HookedLM


def write_texts(path: Path, lm: HookedLM, tables: Sequence[TokenTable], texts: TokenTexts) -> int:
    """Read the contexts and write the table; returns their number."""
    read = read_texts(lm, torch.cat([part.tokens for part in tables]))
    fires = read.activations > 0
    everything = torch.ones_like(read.tokens, dtype=torch.bool)
    nll = lists(read.nll, everything, pa.float32())
    values = pa.array(
        nll.values.to_numpy(zero_copy_only=False), pa.float32(), from_pandas=True
    )  # NaN, of the first token, is null
    columns = {
        "corpus": pa.array([number for number, part in enumerate(tables) for _ in range(len(part))], pa.int32()),
        "document": pa.array([document for part in tables for document in part.documents], pa.string()),
        "tokens": texts.lists(read.tokens, everything),
        "features": nested(read.features, fires, pa.int32()),
        "activations": nested(read.activations, fires, pa.float32()),
        "nll": pa.ListArray.from_arrays(nll.offsets, values),
    }
    with whole_file(path) as partial:
        pq.write_table(table(columns, TEXTS), partial, compression="zstd")
    return len(read.tokens)
