"""Test that the page is written whole, holds every shard, and requests nothing from a network."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from facts_folder import write_facts

from mtsae_lens.errors import DataError
from mtsae_lens.reporting.explorer.page import write_explorer


def shard(page: Path, kind: str, number: int) -> object:
    text = (page / "data" / f"{kind}-{number}.js").read_text(encoding="utf-8")
    return json.loads(text.removeprefix(f'mtsaeShard("{kind}",{number},').removesuffix(");\n"))


def test_every_feature_is_in_its_shard(tmp_path: Path) -> None:
    index = write_explorer(write_facts(tmp_path, d_sae=130))
    assert index == tmp_path / "index.html"
    assert [len(shard(tmp_path / "page", "features", n)) for n in range(3)] == [64, 64, 2]  # type: ignore[arg-type]
    for number in range(3):
        pairs = zip(shard(tmp_path / "page", "features", number), shard(tmp_path / "page", "examples", number), strict=True)  # type: ignore[call-overload]
        for place, (facts, examples) in enumerate(pairs):
            assert facts["feature"] == 64 * number + place
            assert len(examples) == (0 if facts["n_active"] == 0 else 6)


def test_a_shard_without_examples(tmp_path: Path) -> None:
    write_explorer(write_facts(tmp_path, d_sae=200, n_with_examples=70))
    assert [len(e) for e in shard(tmp_path / "page", "examples", 2)] == [0] * 64  # type: ignore[attr-defined]


def test_unsorted_examples_are_refused_and_the_old_page_stays(tmp_path: Path) -> None:
    index = write_explorer(write_facts(tmp_path, d_sae=130))
    before = (tmp_path / "page" / "data" / "list-0.js").read_bytes()
    table = pq.read_table(tmp_path / "examples.parquet")
    pq.write_table(pa.concat_tables([table[400:], table[:400]]), tmp_path / "examples.parquet")
    with pytest.raises(DataError, match="sorted by feature, got another order"):
        write_explorer(tmp_path)
    assert index.exists()
    assert (tmp_path / "page" / "data" / "list-0.js").read_bytes() == before


def test_what_the_page_loads_is_there_and_nothing_else_is_asked_for(tmp_path: Path) -> None:
    index = write_explorer(write_facts(tmp_path, d_sae=3)).read_text()
    loaded = re.findall(r'(?:src|href)="([^"]+)"', index)
    assert len(loaded) > 10
    assert [path for path in loaded if path != "data:," and not (tmp_path / path).is_file()] == []
    own = [path for folder in ("scripts", "styles", "vendor") for path in (tmp_path / "page" / folder).iterdir()]
    for path in own:
        text = path.read_text(encoding="utf-8")
        assert "sourceMappingURL" not in text, path
        assert not re.search(r"\b(fetch|XMLHttpRequest|importScripts)\(", text) or path.parent.name == "vendor", path
        assert path.suffix != ".css" or not re.search(r"@import|url\((?!data:)", text), path
        assert not re.search(r"https?:", text) or path.parent.name == "vendor", path


def test_every_vendored_file_has_a_licence(tmp_path: Path) -> None:
    write_explorer(write_facts(tmp_path, d_sae=3))
    names = {path.name for path in (tmp_path / "page" / "vendor").iterdir()}
    assert {"htm.LICENSE", "preact.LICENSE", "tabulator.LICENSE", "uPlot.LICENSE"} <= names


def test_a_folder_of_an_earlier_version_makes_a_page(tmp_path: Path) -> None:
    saved = Path(__file__).parents[2] / "legacy" / "saved" / "facts"
    folder = shutil.copytree(saved, tmp_path / "facts")
    write_explorer(folder)
    listed, features = shard(folder / "page", "list", 0), shard(folder / "page", "features", 0)
    assert [row["n_active"] for row in features[:2]] == [271, 770]  # type: ignore[index]
    assert listed["n_active"][:2] == [271, 770]  # type: ignore[index]


def test_the_page_has_titles_and_meanings_of_every_column(tmp_path: Path) -> None:
    write_explorer(write_facts(tmp_path, d_sae=3))
    columns = shard(tmp_path / "page", "columns", 0)
    row = shard(tmp_path / "page", "features", 0)[0]  # type: ignore[index]
    assert set(columns["features"]) == set(row)  # type: ignore[index]
    assert columns["features"]["density"]["title"] == "Density"  # type: ignore[index]
    assert columns["features"]["density"]["format"] == "percent"  # type: ignore[index]
