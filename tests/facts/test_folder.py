"""Test that a folder without valid facts is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from facts_folder import write_facts

from mtsae_lens.errors import DataError
from mtsae_lens.facts.folder import FactsFolder


def test_reads_every_row_in_order(tmp_path: Path) -> None:
    folder = FactsFolder.open(write_facts(tmp_path, d_sae=40))
    assert [row["feature"] for row in folder.features()] == list(range(40))
    assert len(list(folder.examples())) == 6 * 38  # two of forty are dead
    assert len(list(folder.texts())) == 10


def test_refuses_what_is_no_folder_of_facts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="mtsae explore"):
        FactsFolder.open(tmp_path / "none")


def test_refuses_another_format(tmp_path: Path) -> None:
    settings = json.loads((write_facts(tmp_path, d_sae=4) / "explore.json").read_text())
    (tmp_path / "explore.json").write_text(json.dumps(settings | {"format": "mtsae-exploration-9"}))
    with pytest.raises(DataError, match="mtsae-exploration-9"):
        FactsFolder.open(tmp_path)


@pytest.mark.parametrize(("table", "column"), [("features", "kernel"), ("examples", "hidden_pre"), ("texts", "nll")])
def test_names_a_missing_column(tmp_path: Path, table: str, column: str) -> None:
    path = write_facts(tmp_path, d_sae=4) / f"{table}.parquet"
    pq.write_table(pq.read_table(path).drop_columns([column]), path)
    with pytest.raises(DataError, match=f"expected the columns {column}, got a table without them"):
        FactsFolder.open(tmp_path)


def test_names_a_missing_table(tmp_path: Path) -> None:
    (write_facts(tmp_path, d_sae=4) / "texts.parquet").unlink()
    with pytest.raises(DataError, match=r"texts\.parquet"):
        FactsFolder.open(tmp_path)
