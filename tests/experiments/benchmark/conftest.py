"""Provide a tiny model, SAE and reference as the setup of tiny tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mtsae_lens.experiments.benchmark import attack_cell
from mtsae_lens.experiments.benchmark import setup as setup_module
from mtsae_lens.experiments.benchmark.arms import BenchmarkSize, BenchmarkTask
from mtsae_lens.experiments.benchmark.setup import BenchmarkSetup
from mtsae_lens.export.low_rank import LowRankSettings
from mtsae_lens.training.recipe import TrainSettings, train_sae
from mtsae_lens.unlearning.candidates import Grid
from mtsae_lens.unlearning.finetuning.finetune import FinetuneSettings
from mtsae_lens.unlearning.recovery.perturbation import RecoverySettings
from mtsae_lens.unlearning.task import Corpus

SIZE = BenchmarkSize(
    gated=Grid(("frequency_difference",), n_features=(1, 2), multipliers=(1.0, 4.0), false_positive_rates=(0.2,)),
    ungated=Grid(("frequency_difference",), n_features=(2,), multipliers=(0.0, 2.0), false_positive_rates=(None,)),
    n_random_draws=2,
    relearned_documents=(2, 4),
    recovery=RecoverySettings(n_steps=2, n_context_steps=1, n_random=1),
    low_rank=LowRankSettings(rank=2, n_steps=2, batch_size=2),
)


@pytest.fixture(scope="session")
def reference_dir(tmp_path_factory: pytest.TempPathFactory, save_neox: Callable[..., Path]) -> Path:
    """Another model."""
    return save_neox(tmp_path_factory.mktemp("models") / "reference", initializer_range=0.1)


@pytest.fixture(scope="session")
def tiny_sae_dir(tmp_path_factory: pytest.TempPathFactory, tiny_settings: Callable[..., TrainSettings]) -> Path:
    """A tiny SAE of which several features prefer the text about the sea: one that starts at zero."""
    out = tmp_path_factory.mktemp("benchmark") / "sae"
    train_sae(tiny_settings(out, training_tokens=60 * 4 * 32, b_dec_init="zeros"))
    return out


@pytest.fixture
def text_task(text_file: Path, sea_file: Path) -> BenchmarkTask:
    corpora = (Corpus(str(sea_file), "forget"), Corpus("kjv", "near"), Corpus(str(text_file), "far"), Corpus("sotu", "neutral"))
    return BenchmarkTask("text", corpora, str(sea_file), ("kjv", str(text_file)))


@pytest.fixture
def people_task(text_file: Path) -> BenchmarkTask:
    corpora = (Corpus("facts:forget:known", "forget"), Corpus(str(text_file), "far"))
    return BenchmarkTask("people", corpora, "facts:forget:known", (str(text_file),), unseen="facts:forget:unseen")


@pytest.fixture
def make_setup(tiny_model_dir: Path, tiny_sae_dir: Path, reference_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(setup_module, "TRAINING_CONTEXTS", 12)
    settings: FinetuneSettings = replace(attack_cell.RELEARNING, lr=1e-2, n_steps=2, batch_size=2, snapshots=(0, 1, 2))
    monkeypatch.setattr(attack_cell, "RELEARNING", settings)

    def make(task: BenchmarkTask, reference: Path | None = reference_dir) -> BenchmarkSetup:
        return BenchmarkSetup(task, 4, str(tiny_model_dir), None if reference is None else str(reference), tiny_sae_dir)

    return make


@pytest.fixture
def size() -> BenchmarkSize:
    return SIZE
