"""Test the columns of a folder of facts: declared once, equal to those of older folders, and shown by the page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from facts_folder import write_facts

from mtsae_lens.facts import folder as module
from mtsae_lens.facts.columns import Column, columns, parquet_schema, required_columns
from mtsae_lens.facts.folder import FEATURES_FILE, TABLES, FactsFolder
from mtsae_lens.facts.records import FeatureFacts
from tools.fact_tables import PAGE, fill_in

ROOT = Path(__file__).parents[2]
SAVED = ROOT / "tests" / "legacy" / "saved" / "facts"


@pytest.mark.parametrize("name", TABLES)
def test_columns_and_types_are_those_of_saved_folders(name: str) -> None:
    saved, declared = pq.read_schema(SAVED / name), parquet_schema(TABLES[name])
    required = required_columns(TABLES[name])
    assert {field.name: field.type for field in saved} == {column: declared.field(column).type for column in required}


@pytest.mark.parametrize("name", TABLES)
def test_every_column_has_a_meaning(name: str) -> None:
    for column in columns(TABLES[name]).values():
        assert re.fullmatch(r"(`|[A-Z]|log2).*\.", column.meaning), column
        assert "\n" not in column.meaning


def test_formats_are_functions_of_the_page() -> None:
    script = (ROOT / "mtsae_lens/reporting/explorer/static/scripts/format.js").read_text()
    (exported,) = re.findall(r"MT\.format = \{(.*?)\}", script)
    formats = {column.shown_as for column in columns(FeatureFacts).values()} - {None}
    assert formats <= set(exported.replace(" ", "").split(","))


def test_the_documentation_has_the_tables_of_today() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert fill_in(text) == text, "run: python -m tools.fact_tables"
    for name in TABLES:
        assert f"<!-- columns of {name} -->" in text


def test_types_follow_from_annotations() -> None:
    @dataclass(frozen=True)
    class Made:
        one: Annotated[int | None, Column("One.", n_bits=64)]
        many: Annotated[tuple[tuple[float, ...], ...], Column("Many.")]

    assert parquet_schema(Made) == pa.schema({"one": pa.int64(), "many": pa.list_(pa.list_(pa.float32()))})  # type: ignore[arg-type]


def test_a_column_added_later_may_be_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column with a default is None in a folder that was written before it existed."""

    @dataclass(frozen=True)
    class NewFacts(FeatureFacts):
        surprise: Annotated[float | None, Column("Surprise.", "Surprise")] = None

    monkeypatch.setitem(module.TABLES, FEATURES_FILE, NewFacts)
    facts = FactsFolder.open(write_facts(tmp_path, d_sae=4))
    assert [row["surprise"] for row in facts.features()] == [None] * 4
    assert facts.feature_table()["surprise"].to_pylist() == [None] * 4
