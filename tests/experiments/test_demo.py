"""Test `mtsae demo` from training to report, with small settings."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from mtsae_lens.errors import MTSAEError, TrainingInterrupted
from mtsae_lens.experiments import demo as module
from mtsae_lens.experiments.demo import DemoResult, DemoSettings, run_demo
from mtsae_lens.exploration import explore
from mtsae_lens.facts.exploration import Exploration
from mtsae_lens.reporting.page import Table
from mtsae_lens.training.recipe import TrainSettings
from mtsae_lens.training.trainer import SequenceSAETrainer


class Little(DemoSettings):
    """The demo in contexts of 32 tokens and hardly trained."""

    def training(self, architecture: str) -> TrainSettings:
        small = {"context_size": 32, "batch_size_tokens": 512, "buffer_size_sequences": 32, "lm_batch_size_sequences": 32}
        return super().training(architecture).model_copy(update=small)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> DemoSettings:
    return Little(
        out=tmp_path_factory.mktemp("demo"),
        training_tokens=4_096,
        d_sae=64,
        k=8,
        n_eval_contexts=4,
        n_shown_features=2,
        near=(),
        retain=("sotu",),
        contexts_per_split=8,
        n_explored_tokens=512,
    )


@pytest.fixture(scope="module")
def made(settings: DemoSettings) -> tuple[DemoResult, list[Table]]:
    return run_demo(settings)


def test_the_demo(settings: DemoSettings, made: tuple[DemoResult, list[Table]]) -> None:
    result, tables = made
    metrics = json.loads((settings.out / "metrics.json").read_text())
    assert set(metrics) == {"fidelity", "unlearning", "provenance"}
    assert DemoResult.from_json(metrics) == result
    assert set(result.fidelity) == {"mtsae", "topk"}
    assert result.unlearning.corpora.keys() == {"kjv", "sotu"}
    assert [table.header[0] for table in tables] == ["metric", "corpus"]
    page = (settings.out / "report.html").read_text()
    for title in (
        "How good is the SAE?",
        "Unlearning",
        "Features that were edited",
        "All features",
        "Training",
        "Time scales",
    ):
        assert f"<h2>{title}</h2>" in page
    assert 'href="explore/index.html"' in page
    assert (settings.out / "explore" / "index.html").is_file()
    facts = Exploration.open(settings.out / "explore")
    assert (facts.about["d_sae"], [corpus["name"] for corpus in facts.about["corpora"]]) == (64, ["kjv", "sotu"])


def test_typed_again_it_trains_and_explores_nothing_anew(
    settings: DemoSettings, made: tuple[DemoResult, list[Table]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise AssertionError("this was done before")

    monkeypatch.setattr(SequenceSAETrainer, "step", fail)
    monkeypatch.setattr(explore, "_pass_over_text", fail)
    for name in ("unlearn", "evaluate_fidelity"):
        monkeypatch.setattr(module, name, fail)
    assert run_demo(settings)[0] == made[0]


def test_stopped_it_says_what_to_type_and_goes_on_from_there(
    settings: DemoSettings, made: tuple[DemoResult, list[Table]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal in the training, then one in the unlearning: what was done is not done again, and the numbers are the same."""
    settings = settings.model_copy(update={"out": tmp_path})
    original_step, original_unlearn = SequenceSAETrainer.step, module.unlearn
    trained: list[int] = []

    def step(self: SequenceSAETrainer, *arguments: Any) -> Any:
        trained.append(self.n_training_steps)
        if len(trained) == 3:
            signal.raise_signal(signal.SIGTERM)
        return original_step(self, *arguments)

    def stopped(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return original_unlearn(*arguments)

    monkeypatch.setattr(SequenceSAETrainer, "step", step)
    for number in (signal.SIGTERM, signal.SIGINT):
        with monkeypatch.context() as patch:
            patch.setattr(module, "unlearn", stopped)
            with pytest.raises(TrainingInterrupted, match=r"^finished work is kept; run the same command to resume$") as stop:
                run_demo(settings)
        assert stop.value.signal_number == number
    n_trained = len(trained)
    monkeypatch.setattr(module, "evaluate_fidelity", lambda *arguments: pytest.fail("this was done before"))
    result, _ = run_demo(settings)
    assert (n_trained, len(trained)) == (16, 16)  # eight steps of each architecture
    assert result.fidelity == made[0].fidelity
    assert result.unlearning.corpora == made[0].unlearning.corpora


def test_the_report_opens_with_what_happened(settings: DemoSettings, made: tuple[DemoResult, list[Table]]) -> None:
    result, page = made[0], (settings.out / "report.html").read_text()
    summary = page[page.index('<div class="summary">') : page.index("<section")]
    trained, unlearned, look = summary.split("<p>")[1:]
    own, row = result.fidelity["mtsae"], result.unlearning.to_json()["corpora"]["kjv"]
    assert f"explains {own['explained_variance']:.1%}" in trained
    assert f"{result.fidelity['topk']['explained_variance']:.1%}" in trained
    assert f"{row['nll_delta']:+.3f} nats per token" in unlearned
    assert f"A model that never saw the text has {row['nll_reference'] - row['nll_clean']:+.3f}" in unlearned
    assert "far text whose loss rises most (sotu)" in unlearned
    for target in re.findall('href="#([^"]+)"', look):
        assert f'<section id="{target}">' in page
    assert "Features that were edited</h2>" in page.split(f'id="{re.findall("#([^" + chr(34) + "]+)", look)[0]}"')[1][:100]


def test_other_settings_do_not_take_what_is_there(settings: DemoSettings, made: Any) -> None:
    with pytest.raises(MTSAEError, match="seed"):
        run_demo(settings.model_copy(update={"seed": 1}))
