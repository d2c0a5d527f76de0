"""Write `texts.parquet`: one row per context of the text view."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.exploration.columns import TokenTexts, make_lists, make_nested_lists, make_table, replace_nan
from mtsae_lens.exploration.texts import read_texts
from mtsae_lens.facts.records import TextFacts
from mtsae_lens.files import write_whole_file
from mtsae_lens.machine_paths import shorten_name
from mtsae_lens.splice.hooked_lm import HookedLM


def write_texts(path: Path, lm: HookedLM, tables: Sequence[TokenTable], texts: TokenTexts) -> int:
    """Read contexts through the SAE and write the table.

    Args:
        path: the file to write.
        lm: model and SAE.
        tables: contexts of each corpus.
        texts: text of every token.

    Returns:
        The number of contexts.
    """
    read = read_texts(lm, torch.cat([part.tokens for part in tables]))
    fires = read.activations > 0
    everything = torch.ones_like(read.tokens, dtype=torch.bool)
    columns = {
        "corpus": pa.array([number for number, part in enumerate(tables) for _ in range(len(part))], pa.int32()),
        "document": pa.array([shorten_name(document) for part in tables for document in part.documents], pa.string()),
        "tokens": texts.make_lists(read.tokens, everything),
        "features": make_nested_lists(read.features, fires, pa.int32()),
        "activations": make_nested_lists(read.activations, fires, pa.float32()),
        "nll": replace_nan(make_lists(read.nll, everything, pa.float32())),  # the first token has no loss
    }
    with write_whole_file(path) as partial:
        pq.write_table(make_table(columns, TextFacts), partial, compression="zstd")
    return len(read.tokens)
