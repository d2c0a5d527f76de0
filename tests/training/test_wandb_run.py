"""Test runs on Weights & Biases: SAELens's keys and artifacts, closed after every outcome, continued after a stop. No network."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from sae_lens import LoggingConfig

from mtsae_lens.errors import ConfigError, TrainingInterrupted
from mtsae_lens.training import recipe
from mtsae_lens.training.log import read_log
from mtsae_lens.training.recipe import TrainSettings, train_sae
from mtsae_lens.training.trainer import SequenceSAETrainer


@dataclass
class Recorder:
    """wandb's functions, kept instead of sent."""

    inits: list[dict[str, Any]] = field(default_factory=list)
    rows: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    artifacts: list[tuple[str, list[str], list[str] | None]] = field(default_factory=list)
    exits: list[int | None] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    """Settings of runs and artifacts, and the content of JSON files."""
    last_step: int = 0

    def init(self, **settings: Any) -> SimpleNamespace:
        self.inits.append(settings)
        self.sent.append(json.dumps(settings, default=str))
        self.last_step = 0
        return SimpleNamespace(id=settings["id"] or f"run{len(self.inits)}")

    def log(self, row: dict[str, Any], step: int) -> None:
        assert step >= self.last_step  # wandb drops what comes before
        self.last_step = step
        self.rows.append((step, row))

    def log_artifact(self, artifact: Any, aliases: list[str] | None = None) -> None:
        self.sent.append(json.dumps(artifact.metadata, default=str))
        self.sent += [Path(e.local_path).read_text() for name, e in artifact.manifest.entries.items() if name.endswith(".json")]
        self.artifacts.append((artifact.type, sorted(artifact.manifest.entries), aliases))

    def finish(self, exit_code: int | None = None) -> None:
        self.exits.append(exit_code)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    kept = Recorder()
    for name in ("init", "log", "log_artifact", "finish"):
        monkeypatch.setattr(wandb, name, getattr(kept, name))
    return kept


Make = Callable[..., TrainSettings]


def test_rows_histograms_and_the_final_sae(
    recorder: Recorder, tiny_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "LoggingConfig", partial(LoggingConfig, eval_every_n_wandb_logs=2))
    train_sae(tiny_settings(tmp_path, wandb=True, wandb_project="p", wandb_run_name="n", log_every_n_steps=4))
    (init,) = recorder.inits
    assert (init["project"], init["name"], init["id"], init["resume"]) == ("p", "n", None, "allow")
    assert init["config"]["hook_name"] == "blocks.0.hook_resid_post"
    rows = {row["step"]: row for row in read_log(tmp_path / "training_log.jsonl")}
    logged = [(step, row) for step, row in recorder.rows if "metrics/explained_variance" in row]
    assert [step for step, _ in logged] == [4, 8, 12]
    for step, row in logged:
        assert {"step": step} | json.loads(json.dumps(row)) == rows[step]
    histograms = [step for step, row in recorder.rows if any(isinstance(value, wandb.Histogram) for value in row.values())]
    assert histograms == [8]
    assert recorder.exits == [None]
    kinds = {kind: (files, aliases) for kind, files, aliases in recorder.artifacts}
    assert kinds["model"] == (["cfg.json", "sae_weights.safetensors"], ["final_model"])
    assert kinds["log_feature_sparsity"][0] == ["sparsity.safetensors"]
    assert len(recorder.sent) == 4
    assert not any(str(tmp_path.parent) in text for text in recorder.sent)  # no path of the machine leaves it
    assert "elsewhere:land.txt" in recorder.sent[2]


def test_without_it_nothing_is_called(recorder: Recorder, tiny_settings: Make, tmp_path: Path) -> None:
    train_sae(tiny_settings(tmp_path))
    assert (recorder.inits, recorder.rows, recorder.exits) == ([], [], [])


def test_a_stopped_run_is_closed_and_gone_on_with(
    recorder: Recorder, tiny_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings(tmp_path, wandb=True)
    original = SequenceSAETrainer.step

    def stops(trainer: SequenceSAETrainer, batch: Any) -> Any:
        if trainer.n_training_steps == 6:
            raise TrainingInterrupted(15, "stopped")
        return original(trainer, batch)

    with monkeypatch.context() as patched:
        patched.setattr(SequenceSAETrainer, "step", stops)
        with pytest.raises(TrainingInterrupted):
            train_sae(settings)
    assert recorder.exits == [1]
    assert recorder.artifacts == []
    train_sae(settings, resume=True)
    assert [init["id"] for init in recorder.inits] == [None, "run1"]
    assert recorder.exits == [1, None]
    assert recorder.rows[-1][0] == 12


def test_a_new_run_is_a_new_run(recorder: Recorder, tiny_settings: Make, tmp_path: Path) -> None:
    train_sae(tiny_settings(tmp_path / "a", wandb=True))
    train_sae(tiny_settings(tmp_path / "b", wandb=True))
    assert [init["id"] for init in recorder.inits] == [None, None]


def test_a_refusal_is_said(tiny_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(**_: Any) -> None:
        raise wandb.errors.UsageError("No API key configured")

    monkeypatch.setattr(wandb, "init", refuses)
    with pytest.raises(ConfigError, match=r"No API key configured.*WANDB_MODE=offline"):
        train_sae(tiny_settings(tmp_path, wandb=True))


@pytest.mark.slow
def test_offline_for_real(tiny_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": tmp_path, "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    train_sae(tiny_settings(tmp_path / "sae", wandb=True))
    (run,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert (tmp_path / "sae" / "wandb_id.txt").read_text().strip() in run.name
    assert run.read_bytes().count(b"metrics/explained_variance") >= 12  # a row a step; the file's blocks may cut one in two


def test_the_command_line(recorder: Recorder, mtsae: Callable[..., Any], tiny_settings: Make, tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    options = ["--model", settings.model, "--hook-name", settings.hook_name, "--dataset", settings.dataset, "--d-sae", 32]
    options += ["--context-size", 32, "--batch-size-tokens", 128, "--training-tokens", 512, "--set", "k=4"]
    done = mtsae("train", *options, "--wandb-project", "mine", "--out", tmp_path / "a")
    assert done.code == 0, done.err
    assert recorder.inits[0]["project"] == "mine"
    assert mtsae("train", *options, "--wandb-project", "mine", "--no-wandb", "--out", tmp_path / "b").code == 0
    assert len(recorder.inits) == 1
