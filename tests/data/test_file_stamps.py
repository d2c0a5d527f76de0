"""Test that unchanged files have the same stamps, and changed files different ones."""

from __future__ import annotations

import os
from pathlib import Path

from mtsae_lens.data.file_stamps import model_stamps, text_stamps


def test_a_text_that_changed_under_its_name(tmp_path: Path) -> None:
    sea, land = tmp_path / "sea.txt", tmp_path / "land.txt"
    sea.write_text("waves")
    land.write_text("hills")
    source = f"{sea}+{land}"
    before = text_stamps(source, "embedded", "kjv", "owner/dataset")
    assert list(before) == [f"contents of {sea}", f"contents of {land}"]
    assert text_stamps(source) == before
    land.write_text("hills and dales")
    after = text_stamps(source)
    assert [before[name] == after[name] for name in before] == [True, False]
    at = sea.stat().st_mtime_ns
    sea.write_text("weeds")  # of the same length
    os.utime(sea, ns=(at, at + 1))
    assert text_stamps(source)[f"contents of {sea}"] != before[f"contents of {sea}"]


def test_a_folder_is_the_texts_in_it(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.jsonl").write_text('{"text": "a"}')
    before = text_stamps(str(tmp_path))
    (tmp_path / "results.json").write_text("{}")  # written beside the texts, and not read with them
    assert text_stamps(str(tmp_path)) == before
    (tmp_path / "b.txt").write_text("b")
    assert text_stamps(str(tmp_path)) != before


def test_a_model_is_the_files_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = model_stamps(f"bridge:{tmp_path}", None, "embedded", "pythia-70m")
    assert list(before) == [f"contents of {tmp_path}"]
    (tmp_path / "model.safetensors").write_bytes(b"0")
    assert model_stamps(str(tmp_path)) != before
