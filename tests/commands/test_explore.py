"""Test `mtsae explore`: facts are written, resumed, and refused for other settings."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from sae_lens import SAE

from mtsae_lens.exploration.survey import Survey
from mtsae_lens.facts.exploration import Exploration


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text("n_text_contexts: 2\nn_attribution_contexts: 2\nn_sampled: 2\nbefore: 4\n")
    return path


@pytest.fixture
def explore(mtsae: Callable[..., Any], tiny_sae_dir: Path, config: Path, tmp_path: Path) -> Callable[..., Any]:
    def call(*more: Any, sae: Path = tiny_sae_dir) -> Any:
        small = ("--n-tokens", 320, "--n-examples", 2, "--n-ablated", 1, "--n-attributed", 1)
        return mtsae("explore", sae, "--config", config, "--out", tmp_path / "out", *small, *more)

    return call


def test_explore(explore: Any, tmp_path: Path, text_file: Path, sea_file: Path, tiny_sae_dir: Path) -> None:
    outcome = explore("--dataset", text_file, "--dataset", sea_file, "--split", "train")
    assert outcome.code == 0, outcome.err
    page = tmp_path / "out" / "index.html"
    assert outcome.out.splitlines()[-2:] == ["read 310 tokens", f"page: {page}"]
    assert page.is_file()
    facts = Exploration.open(tmp_path / "out")
    assert [corpus["name"] for corpus in facts.about["corpora"]] == [f".../{text_file.name}", f".../{sea_file.name}"]
    assert facts.about["sae"] == tiny_sae_dir.name
    assert facts.about["provenance"]["settings"]["before"] == 4
    assert facts.features["selectivity"].notna().all()
    for path in [path for path in (tmp_path / "out").rglob("*") if path.is_file()]:
        assert str(tmp_path.parent).encode() not in path.read_bytes(), path
    documents = pq.read_table(tmp_path / "out" / "examples.parquet")["document"].to_pylist()
    assert {document.split("#")[0] for document in documents} == {f".../{text_file.name}", f".../{sea_file.name}"}
    again = explore("--dataset", text_file, "--dataset", sea_file, "--split", "train")
    assert again.code == 0
    refused = explore("--dataset", text_file, "--split", "train")
    assert refused.code == 2
    assert f"got results made with other settings (contents of .../{sea_file.name}, dataset)" in refused.error


def test_facts_of_a_text_that_changed_are_refused(explore: Any, text_file: Path, tmp_path: Path) -> None:
    text = Path(shutil.copy(text_file, tmp_path / "text.txt"))
    assert explore("--dataset", text).code == 0
    assert explore("--dataset", text).code == 0
    text.write_text(text.read_text() + "And more.\n")
    refused = explore("--dataset", text)
    assert refused.code == 2
    assert "got results made with other settings (contents of .../text.txt)" in refused.error


def test_facts_of_a_model_that_changed_are_refused(explore: Any, tiny_model_dir: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    assert explore("--model", model).code == 0
    assert explore("--model", model).code == 0
    (model / "config.json").touch()
    refused = explore("--model", model)
    assert refused.code == 2
    assert "got results made with other settings (contents of .../model)" in refused.error


def test_the_training_dataset_if_none_is_named(explore: Any, tmp_path: Path, text_file: Path) -> None:
    outcome = explore("--n-tokens", 100_000)
    assert outcome.code == 0, outcome.err
    assert "(the texts hold no more; 100,000 were requested)" in outcome.out
    facts = Exploration.open(tmp_path / "out")
    assert facts.about["corpora"][0]["name"] == f".../{text_file.name}"
    assert facts.about["split"] == "select"


def test_stopped_and_carried_on(explore: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Survey.add

    def stopping(self: Survey, batch: Any) -> None:
        original(self, batch)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Survey, "add", stopping)
        outcome = explore()
    assert outcome.code == 130
    assert "run the same command to resume" in outcome.err
    assert not (tmp_path / "out" / "explore.json").exists()
    assert explore().code == 0
    assert not (tmp_path / "out" / "state").exists()


def test_an_sae_trained_anew_is_another(explore: Any, tiny_sae_dir: Path, tmp_path: Path) -> None:
    sae = shutil.copytree(tiny_sae_dir, tmp_path / "sae", ignore=shutil.ignore_patterns("checkpoints"))
    assert explore(sae=sae).code == 0
    trained = SAE.load_from_disk(sae)
    trained.b_dec.data[-1] += 1
    trained.save_model(sae)
    assert "(sae_sha256)" in explore(sae=sae).error


def test_mistakes(explore: Any, tmp_path: Path) -> None:
    assert (
        "expected a file, a folder, an embedded domain or owner/name on the hub, got 'kjw'. Did you mean 'kjv'"
        in explore("--dataset", "kjw").error
    )
    assert "--split: expected" in explore("--split", "exam").error
    assert "expected n_ablated of at most n_examples=2, got 9" in explore("--n-ablated", 9).error
    assert "setting n_tokens" in explore("--n-tokens", 0).error
    assert not list((tmp_path / "out").glob("*.parquet"))
