"""Test the names of the default model and text without the hub: a random model configured like Pythia-70m, and rows like the Pile's.

The long experiments run under the same names on a narrower model, whose forward passes cost a hundredth.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import make_text
from hub_cache import PYTHIA_70M, environment, put_model, put_pile, write_pythia_70m

CONFIGS = Path(__file__).parents[2] / "examples" / "configs"
WORDS = "court law judge appeal the of and claim device method said city river was born in def return class value import"
SMALL: dict[str, Any] = {"context_size": 16, "d_sae": 64, "training_tokens": 512}


def make_home(home: Path, **changes: int) -> Path:
    put_model(home, "EleutherAI/pythia-70m", partial(write_pythia_70m, **changes))
    put_pile(home, [make_text(WORDS, 300, seed) for seed in range(600)])
    return home


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("hf"))


@pytest.fixture(scope="module")
def narrow_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same layers and names; width and vocabulary are those of a tiny model."""
    return make_home(tmp_path_factory.mktemp("narrow"), hidden_size=64, intermediate_size=128, vocab_size=4096)


def run(home: Path, *arguments: Any) -> str:
    """Run the command line in a process that can reach only the hub's cache."""
    command = [sys.executable, "-m", "mtsae_lens.cli", *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | environment(home), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def variant(config: str, folder: Path, **changes: Any) -> Path:
    """A configuration of the repository with less to do."""
    settings = yaml.safe_load((CONFIGS / config).read_text())
    for name in set(settings) & set(changes):
        assert settings[name] != changes[name], f"{name} of {config} is not made smaller"
    path = folder / config
    path.write_text(yaml.safe_dump(settings | changes))
    return path


def test_the_stand_in_has_pythias_configuration(home: Path) -> None:
    snapshot = next((home / "hub/models--EleutherAI--pythia-70m/snapshots").iterdir())
    config = json.loads((snapshot / "config.json").read_text())
    assert config["architectures"] == ["GPTNeoXForCausalLM"]
    assert config["rope_parameters"]["partial_rotary_factor"] == PYTHIA_70M["rotary_pct"]
    for name in set(PYTHIA_70M) - {"rotary_pct"}:
        assert config[name] == PYTHIA_70M[name]
    assert (snapshot / "model.safetensors").is_symlink()


def test_train(home: Path, tmp_path: Path) -> None:
    small = {"batch_size_tokens": 128, "buffer_size_sequences": 16, "lm_batch_size_sequences": 8}
    config = variant("pythia-70m.yaml", tmp_path, **SMALL, **small, sae={"k": 8})
    run(home, "train", "--config", config, "--out", tmp_path / "sae")
    metadata = json.loads((tmp_path / "sae" / "cfg.json").read_text())["metadata"]
    assert metadata["model_name"] == "pythia-70m"
    assert metadata["dataset_path"] == "monology/pile-uncopyrighted"
    rows = (tmp_path / "sae" / "training_log.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["step"] == 4


def test_paper(narrow_home: Path, tmp_path: Path) -> None:
    config = tmp_path / "paper.yaml"
    small = {"n_seeds": 1, "n_draws": 20, "n_test_contexts": 2, "n_still_batches": 4, "context_size": 16, "parts": ["paper"]}
    config.write_text(yaml.safe_dump(small))
    run(narrow_home, "paper", "--model", "pythia-70m", "--quick", "--config", config, "--out", tmp_path / "paper")
    settings = json.loads((tmp_path / "paper" / "metrics.json").read_text())["provenance"]["settings"]
    assert settings["model"] == "pythia-70m"
    assert "monology/pile-uncopyrighted" in (tmp_path / "paper" / "report.html").read_text()


def test_unlearn(narrow_home: Path, tmp_path: Path) -> None:
    small = {
        "contexts_per_split": 2,
        "quick": True,
        "n_attacked_seeds": 0,
        "losses": [],
        "device": "cpu",
        "saes": {"mtsae": {"k": 8}},
    }
    config = variant("unlearn-pile.yaml", tmp_path, **SMALL, **small, out=str(tmp_path / "pile"))
    run(narrow_home, "unlearn-benchmark", "--config", config)
    metrics = json.loads((tmp_path / "pile" / "metrics.json").read_text())
    assert {"own", "saes", "provenance"} <= set(metrics)
    assert metrics["own"]["at_cost"]
