"""Test that the model and text of an SAE are found from any directory, reported if missing, and never confused with others of the same name."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from sae_lens.saes.sae import SAEMetadata

from mtsae_lens.data.origins import DIGESTS, display_name, find_model, find_source, record_origins, share_metadata
from mtsae_lens.errors import DataError, ModelError, MTSAEWarning


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a text, a folder of texts and what looks like a model; `there` has others of the same names."""
    for place in ("here", "there"):
        (tmp_path / place / "lm").mkdir(parents=True)
        (tmp_path / place / "lm" / "config.json").write_text(place)
        (tmp_path / place / "t.txt").write_text(f"A text {place}.")
        (tmp_path / place / "d").mkdir()
        (tmp_path / place / "d" / "a.txt").write_text(f"Another {place}.")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def recorded(model: str | None, source: str | None) -> SAEMetadata:
    metadata = SAEMetadata()
    record_origins(metadata, model, source)
    return SAEMetadata(**json.loads(json.dumps(metadata.to_dict())))


@pytest.mark.parametrize(
    ("model", "source", "found_model", "found_source"),
    [
        ("./lm", "t.txt", "{here}/lm", "{here}/t.txt"),
        ("bridge:lm", "d/", "bridge:{here}/lm", "{here}/d"),
        ("embedded", "t.txt+kjv", "embedded", "{here}/t.txt+kjv"),
        ("bridge:embedded", "kjv+./d", "bridge:embedded", "kjv+{here}/d"),
        ("pythia-70m", "owner/name@lang=en", "pythia-70m", "owner/name@lang=en"),
    ],
)
def test_found_from_another_directory(
    here: Path, monkeypatch: pytest.MonkeyPatch, model: str, source: str, found_model: str, found_source: str
) -> None:
    metadata = recorded(model, source)
    monkeypatch.chdir(here.parent / "there")
    assert find_model(metadata, "runs/x") == found_model.format(here=here)
    assert find_source(metadata, "runs/x") == found_source.format(here=here)


def test_gone_is_told_and_another_of_the_same_name_is_not_taken(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = recorded("./lm", "t.txt+kjv")
    (here / "t.txt").unlink()
    (here / "lm").rename(here / "moved")
    monkeypatch.chdir(here.parent / "there")
    with pytest.raises(
        ModelError,
        match=rf"^runs/x: expected {here}/lm, on which it was trained, got no such file or folder on this machine; give --model FOLDER$",
    ):
        find_model(metadata, "runs/x")
    with pytest.raises(
        DataError,
        match=rf"^runs/x: expected {here}/t\.txt, on which it was trained, got no such file or folder on this machine; give --dataset PATH$",
    ):
        find_source(metadata, "runs/x")


def test_changed_contents_are_noticed_and_a_new_time_is_not(here: Path) -> None:
    metadata = recorded("lm", "d")
    (here / "d" / "a.txt").write_text("Another here.")
    assert find_source(metadata, "x") == f"{here}/d"
    (here / "d" / "a.txt").write_text("Another herr.")
    with pytest.raises(DataError, match=r"changed contents; give --dataset .*/d to use it as it is now"):
        find_source(metadata, "x")
    (here / "lm" / "notes.md").write_text("not read by any loader")
    assert find_model(metadata, "x") == f"{here}/lm"
    (here / "lm" / "model.safetensors").write_bytes(b"0" * 200_000)
    with pytest.raises(ModelError, match="changed contents"):
        find_model(metadata, "x")


def test_a_change_in_a_large_file(here: Path) -> None:
    content = bytearray(b"x" * 3_000_000)
    (here / "large.txt").write_bytes(content)
    metadata = recorded(None, "large.txt")
    content[-1:] = b"y"
    (here / "large.txt").write_bytes(content)
    with pytest.raises(DataError, match="changed contents"):
        find_source(metadata, "x")


def test_a_local_namesake_of_what_was_not_local(here: Path) -> None:
    metadata = recorded("pythia-70m", "kjv")
    (here / "kjv").mkdir()
    (here / "pythia-70m").mkdir()
    with pytest.raises(DataError, match=r"give --dataset \./kjv"):
        find_source(metadata, "x")
    with pytest.raises(ModelError, match=r"give --model \./pythia-70m"):
        find_model(metadata, "x")


def test_shared_names_are_no_paths(here: Path) -> None:
    metadata = recorded("bridge:lm", "t.txt+kjv+d")
    shared = share_metadata(metadata.to_dict())
    assert (shared["model_name"], shared["dataset_path"]) == ("bridge:elsewhere:lm", "elsewhere:t.txt+kjv+elsewhere:d")
    assert DIGESTS not in shared
    assert str(here) not in json.dumps(shared)
    assert share_metadata(shared) == shared
    received = SAEMetadata(**shared)
    with pytest.raises(
        ModelError, match="expected lm, on which it was trained, got no such file or folder on this machine; give --model"
    ):
        find_model(received, "hub:me/x:y")
    with pytest.raises(
        DataError, match=r"expected t\.txt, on which it was trained, got no such file or folder on this machine; give --dataset"
    ):
        find_source(received, "hub:me/x:y")
    assert display_name(shared["model_name"]) == "bridge:lm"
    assert display_name(shared["dataset_path"]) == "t.txt+kjv+d"


@pytest.mark.parametrize(
    ("name", "shared"),
    [
        ("/home/me/t.txt", "elsewhere:t.txt"),
        ("C:\\Users\\me\\t.txt", "elsewhere:t.txt"),
        ("./t.txt", "elsewhere:t.txt"),
        ("t.txt", "elsewhere:t.txt"),
        ("monology/pile-uncopyrighted@pile_set_name=Github", "monology/pile-uncopyrighted@pile_set_name=Github"),
        ("embedded", "embedded"),
    ],
)
def test_what_older_saes_share(here: Path, name: str, shared: str) -> None:
    assert share_metadata({"dataset_path": name})["dataset_path"] == shared


def test_an_older_sae_with_relative_paths(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sae = here / "runs" / "sae"
    sae.mkdir(parents=True)
    older = SAEMetadata(model_name="./lm", dataset_path="t.txt")
    monkeypatch.chdir(here.parent / "there")
    with pytest.warns(
        MTSAEWarning, match=r"trained on 't\.txt' in a working directory that was not recorded; using .*/there/t\.txt"
    ):
        assert find_source(older, sae) == "t.txt"
    (sae / "runner_cfg.json").write_text(json.dumps({"output_path": "runs/sae"}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_source(older, sae) == f"{here}/t.txt"
        assert find_model(older, sae) == f"{here}/lm"
    (here / "lm" / "config.json").unlink()
    (here / "lm").rmdir()
    with pytest.warns(MTSAEWarning, match="there/lm"):
        find_model(older, sae)
    monkeypatch.chdir(here.parent)
    with pytest.raises(
        ModelError, match=r"expected \./lm, on which it was trained, got no such file or folder on this machine"
    ):
        find_model(older, sae)


def test_an_sae_that_says_nothing() -> None:
    assert find_model(SAEMetadata(), "x") is None
    assert find_source(SAEMetadata(), "x") is None
    assert find_source(recorded(None, None), "x") is None


def test_options_and_joined_texts_are_shared_without_paths(tmp_path: Path) -> None:
    """Options stay, so that the reader knows what was read; folders do not, even where a name holds `+`, `?` or a path."""
    folder = tmp_path / "my+texts"
    folder.mkdir()
    for name in ("sea.jsonl", "what?.txt", "land.txt"):
        (folder / name).write_text("{}")
    source = (
        f"{folder}/sea.jsonl?column=story@from={tmp_path}/land.txt+kjv+{folder}/what?.txt+owner/data?split=train@path=/a/b.txt"
    )
    metadata = SAEMetadata()
    record_origins(metadata, None, source)
    shared = share_metadata(vars(metadata))["dataset_path"]
    wanted = "sea.jsonl?column=story@from=.../land.txt+kjv+{0}what?.txt+owner/data?split=train@path=/a/b.txt"
    assert shared == "elsewhere:" + wanted.format("elsewhere:")
    assert str(tmp_path) not in display_name(source)
    assert "my+texts" not in display_name(source)
    assert display_name(f"{folder}/sea.jsonl?column=story+kjv") == "sea.jsonl?column=story+kjv"
