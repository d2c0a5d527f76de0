"""Test what the benchmark compares: every name exists, and no method trains on the text that measures it."""

from __future__ import annotations

from dataclasses import fields

import pytest

from mtsae_lens.experiments.benchmark.arms import (
    BUDGETS,
    CONTROL_BUDGETS,
    KNOWN_GROUPS,
    MAIN_BUDGET,
    OURS,
    QUICK,
    SAES,
    TASKS,
    BenchmarkSize,
    BenchmarkTask,
)
from mtsae_lens.training.recipe import TrainSettings
from mtsae_lens.unlearning.gate_kinds import GateChoice
from mtsae_lens.unlearning.selection.scores import SCORES
from mtsae_lens.unlearning.task import Corpus, Task, check_corpus
from mtsae_lens.upstream import SAE_TRAINING_CLASS_REGISTRY


@pytest.mark.parametrize("architecture", SAES)
def test_architectures_are_registered_and_take_their_settings(architecture: str) -> None:
    assert OURS in SAES
    assert architecture in SAE_TRAINING_CLASS_REGISTRY
    _, config = SAE_TRAINING_CLASS_REGISTRY[architecture]
    assert set(SAES[architecture]) <= {field.name for field in fields(config)}
    TrainSettings(architecture=architecture, sae=SAES[architecture])  # type: ignore[call-arg]


@pytest.mark.parametrize("name", TASKS)
def test_tasks_are_tasks_of_sources_that_exist(name: str) -> None:
    benchmark_task = TASKS[name]
    assert benchmark_task.name == name
    task = benchmark_task.task(7)
    assert isinstance(task, Task)
    assert (task.contexts_per_split, task.far_share) == (7, 0.5)
    trained = (benchmark_task.forget_training, *benchmark_task.retain_training)
    for source in (*task.sources("forget", "near", "far", "neutral"), *trained, benchmark_task.unseen):
        if source is not None:
            check_corpus(source)
    assert benchmark_task.forget_training == task.forget
    assert set(benchmark_task.retain_training) == set(task.sources("near", "far"))
    assert task.sources("near")


def test_strangers_and_unseen_words_are_neutral() -> None:
    task = TASKS["people"].task(1)
    for role in ("forget", "near", "far"):
        assert not any("strangers" in source or "unseen" in source for source in task.sources(role))  # type: ignore[arg-type]
    assert TASKS["people"].unseen not in task.sources("forget", "near", "far", "neutral")


@pytest.mark.parametrize("size", [BenchmarkSize(), QUICK])
def test_grids_are_with_and_without_a_gate(size: BenchmarkSize) -> None:
    assert None not in size.gated.false_positive_rates
    assert size.ungated.false_positive_rates == (None,)
    assert {*size.gated.scores, *size.ungated.scores} <= set(SCORES)


def test_people_are_recognized_and_text_is_not() -> None:
    assert TASKS["domain"].gate == GateChoice()
    assert TASKS["domain"].gated(QUICK) == QUICK.gated
    assert TASKS["people"].gate == GateChoice("known_groups_activations")
    assert TASKS["people"].gated(QUICK) == QUICK.gated_questions
    questions = Corpus("facts:forget:known", "forget")
    for spared, gate in (("sotu", GateChoice()), ("facts:retain:known", KNOWN_GROUPS)):
        corpora = (questions, Corpus(spared, "near"), Corpus("facts:strangers:known", "neutral"))
        assert BenchmarkTask("own", corpora, questions.source, (spared,)).gate == gate


def test_budgets_are_those_that_are_looked_up() -> None:
    assert set(BUDGETS) >= set(CONTROL_BUDGETS)
    assert list(BUDGETS) == sorted(BUDGETS)
    assert MAIN_BUDGET in BUDGETS
