"""Test that files saved by version 0.1.0 load and give the same numbers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mtsae_lens import Exploration, open_sae
from mtsae_lens.commands.train import run_train
from mtsae_lens.experiments.benchmark.cells import read_cell
from mtsae_lens.splice.edit_files import load_edit
from mtsae_lens.training.log import read_log
from mtsae_lens.training.recipe import TrainSettings

SAVED = Path(__file__).parent / "saved"
EXPECTED = json.loads((SAVED / "expected.json").read_text())
TEXT = "In the beginning God created the heaven and the earth. And the earth was without form, and void."


@pytest.mark.parametrize("name", ["mtsae", "topk"])
def test_sae_gives_the_same_activations(name: str) -> None:
    lm, model = open_sae(SAVED / name)
    acts = lm.feature_acts(model.to_tokens(TEXT, prepend_bos=True)[:, :24])
    assert int((acts != 0).sum()) == EXPECTED[name]["n_active"]
    assert float(acts.double().sum()) == pytest.approx(EXPECTED[name]["sum"], rel=1e-5)
    assert acts[0, -1].topk(4).indices.tolist() == EXPECTED[name]["top"]


def test_edit_generates_the_same_tokens() -> None:
    lm, model = open_sae(SAVED / "mtsae")
    edit = load_edit(SAVED / "edit.json", lm.splice)
    prompt = model.to_tokens(TEXT, prepend_bos=True)[:, :12]
    assert lm.generate(prompt, edit, max_new_tokens=8, do_sample=False)[0].tolist() == EXPECTED["edit"]["generated"]


def test_facts_give_the_same_numbers() -> None:
    facts = Exploration.open(SAVED / "facts")
    assert facts.features["n_active"].tolist()[:2] == [271, 770]
    assert facts.feature(1).max_activation == pytest.approx(4.707311, rel=1e-6)
    assert len(facts.examples(1)) > 0


def test_interrupted_run_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(SAVED / "interrupted", out)
    settings = TrainSettings(**yaml.safe_load((out / "settings.yaml").read_text()), out=out)
    result = run_train(settings, resume=True)
    assert result is not None
    assert result.n_training_steps == 32
    weights = load_file(out / "sae_weights.safetensors")
    for name, square_sum in EXPECTED["resumed"].items():
        assert float(weights[name].double().square().sum()) == pytest.approx(square_sum, rel=1e-4), name
    kept = torch.tensor([row["step"] for row in read_log(out / "training_log.jsonl")])
    assert (kept.diff() > 0).all()


KEPT_CELLS = json.loads((SAVED / "benchmark_cells.json").read_text())


@pytest.mark.parametrize("name", KEPT_CELLS)
def test_kept_cells_of_the_benchmark_are_read_and_written_with_the_same_keys(name: str) -> None:
    assert read_cell(name, KEPT_CELLS[name]).to_json() == KEPT_CELLS[name]
