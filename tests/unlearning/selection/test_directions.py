"""Test the dense direction against values worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mtsae_lens.data.token_tables import TokenTable, read_tokens
from mtsae_lens.unlearning.selection.directions import difference_of_means


def naive_mean(lm: Any, table: TokenTable) -> torch.Tensor:
    rows = []
    for row in table.tokens:
        h = lm.activations(row[None])[0]
        rows += [h[place] for place in range(1, len(row)) if row[place] != 0]
    return torch.stack(rows).double().mean(dim=0)


def test_difference_of_means_by_hand(lm: Any, text_file: Path, sea_file: Path) -> None:
    forget = read_tokens(str(sea_file), "select", lm.cutter, 5)
    retain = [read_tokens(str(text_file), "select", lm.cutter, 9), read_tokens("kjv", "select", lm.cutter, 2)]
    for table in (forget, *retain):
        table.tokens[1, 20:] = 0  # a separator and padding, which count for nothing
    direction, center = difference_of_means(lm, forget, retain)
    expected = (naive_mean(lm, retain[0]) + naive_mean(lm, retain[1])) / 2  # the larger corpus weighs no more
    torch.testing.assert_close(center.double(), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(direction.double(), naive_mean(lm, forget) - expected, atol=1e-5, rtol=1e-4)
