"""Test opening facts, and folders without facts."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.exploration.corpora import Corpora
from mtsae_lens.exploration.explore import explore
from mtsae_lens.exploration.plan import Plan
from mtsae_lens.facts.exploration import Exploration
from mtsae_lens.facts.folder import FactsFolder


@pytest.fixture(scope="module")
def folder(random_lm: Any, corpora: Corpora, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("facts")
    plan = Plan(2, 1, 4, 2, n_ablated=0, n_attributed=0, n_attribution_contexts=0, n_text_contexts=1)
    explore(random_lm(), corpora, out, plan, settings={}, about=lambda seconds: {})
    return out


def test_search(folder: Path) -> None:
    facts = Exploration.open(folder)
    token = facts.features["top_token"].dropna().iloc[0]
    found = facts.search(token.strip().upper())
    assert len(found) > 0
    wanted = token.strip().lower()
    for row in found.itertuples():
        assert wanted in (row.top_token or "").lower() or any(wanted in t.lower() for t in row.promoted_tokens)
    assert wanted in found.iloc[0]["top_token"].lower()
    promoted = facts.feature(3).promoted_tokens[0]
    assert 3 in facts.search(promoted)["feature"].tolist()
    assert len(facts.search("no token is like this")) == 0
    assert facts.search("(").shape[1] == facts.features.shape[1]  # no pattern


def test_what_is_not_there(folder: Path) -> None:
    facts = Exploration.open(str(folder))
    for feature in (-1, 24):
        with pytest.raises(ConfigError, match=f"between 0 and 23, got {feature}"):
            facts.feature(feature)
        with pytest.raises(ConfigError, match=f"between 0 and 23, got {feature}"):
            facts.examples(feature)
    with pytest.raises(ConfigError, match=r"expected kind 'top', 'sampled' or None, got 'best'"):
        facts.examples(0, "best")


def test_folders_without_facts(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"expected a folder of facts, got no explore\.json; give the --out folder of a finished"
    ):
        Exploration.open(tmp_path)
    for name, content, message in (
        ("explore.json", b"{", r"explore\.json: expected .*damaged"),
        (
            "explore.json",
            json.dumps({"format": "other-9"}).encode(),
            "expected facts of format 'mtsae-exploration-1', got 'other-9'",
        ),
        ("features.parquet", b"x" * 50, r"features\.parquet: expected .*damaged"),
    ):
        broken = shutil.copytree(folder, tmp_path / "broken", dirs_exist_ok=True)
        (broken / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            Exploration.open(broken).feature(0)
        shutil.rmtree(broken)


@pytest.mark.parametrize("content", [b"null", b"[]", b"3", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_description_is_one_line(content: bytes, folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "explore.json").write_bytes(content)
    for read in (Exploration.open, FactsFolder.open):
        with pytest.raises(DataError, match=r"^[^\n]*explore\.json: expected [^\n]*damaged\); delete [^\n]*$"):
            read(broken)


@pytest.mark.parametrize("name", ["explore.json", "features.parquet", "examples.parquet", "texts.parquet"])
def test_a_flipped_bit_is_told(name: str, folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    content = bytearray((broken / name).read_bytes())
    place = content.index(b'"n_tokens": ') + 12 if name == "explore.json" else len(content) // 3
    content[place] ^= 1  # of a digit, another digit
    (broken / name).write_bytes(content)
    for read in (Exploration.open, FactsFolder.open):
        with pytest.raises(DataError, match=rf"{re.escape(name)}: expected the content .*SHA.*damaged\); delete"):
            read(broken)


def test_facts_from_before_are_read(folder: Path, tmp_path: Path) -> None:
    old = shutil.copytree(folder, tmp_path / "old")
    (old / "SHA256SUMS").unlink()
    about = json.loads((old / "explore.json").read_text())
    del about["sha256"]
    (old / "explore.json").write_text(json.dumps(about))
    pd.testing.assert_frame_equal(Exploration.open(old).features, Exploration.open(folder).features)
    assert FactsFolder.open(old).about == about
