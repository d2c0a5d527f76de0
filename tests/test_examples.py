"""Test that the command line accepts every example configuration."""

import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mtsae_lens import MTTrainingSAEConfig
from mtsae_lens.commands.unlearn import UnlearnSettings
from mtsae_lens.data.questions import draw_questions, is_question_source
from mtsae_lens.experiments.benchmark.run import BenchmarkSettings
from mtsae_lens.training.recipe import TrainSettings, runner_config
from mtsae_lens.unlearning.edit_kinds import EDIT_KINDS
from mtsae_lens.unlearning.measures.results import EditLoss
from mtsae_lens.unlearning.sweep import Outcome

CONFIGS = sorted((Path(__file__).parents[1] / "examples" / "configs").glob("*.yaml"))
TRAININGS = [path for path in CONFIGS if not path.stem.startswith("unlearn")]


@pytest.mark.parametrize("path", TRAININGS, ids=lambda path: path.stem)
def test_configuration_is_valid(path: Path) -> None:
    settings = TrainSettings.build(path, {"out": Path("runs/x")})
    cfg = runner_config(settings, d_in=512)
    assert cfg.total_training_steps == 4 if path.stem == "paper" else cfg.total_training_steps > 1000
    assert cfg.train_batch_size_tokens % cfg.context_size == 0


def test_the_unlearning_configuration_is_one_task_with_a_text_of_every_role() -> None:
    settings = BenchmarkSettings.build(CONFIGS[0].parent / "unlearn-pile.yaml", {})
    (task,) = settings.benchmark_tasks().values()
    roles = {corpus.role for corpus in task.task(settings.size().contexts_per_split).corpora}
    assert roles == {"forget", "near", "far", "neutral"}
    assert settings.reference is None


def test_the_controls_can_be_trained() -> None:
    settings = BenchmarkSettings.build(CONFIGS[0].parent / "unlearn-controls.yaml", {})
    for name in settings.saes:
        training = settings.training(name, 0)
        assert runner_config(training, d_in=128).sae.architecture() == training.architecture
    assert {settings.training(name, 0).frozen for name in settings.saes} == {None, "decoder", "all"}


def test_the_configuration_of_edits_tries_every_kind() -> None:
    settings = UnlearnSettings.build(CONFIGS[0].parent / "unlearn-edits.yaml", {"sae": Path("runs/sae")})
    assert set(settings.protocol().grid.edits) == set(EDIT_KINDS) - {"scale_carried"}  # for an SAE with memory
    assert {corpus.role for corpus in settings.task().corpora} == {"forget", "near", "far"}


def test_the_configuration_of_people_asks_about_those_that_the_model_was_taught() -> None:
    script = runpy.run_path(str(CONFIGS[0].parents[1] / "teach_people.py"))
    taught = {person.name for person in script["select_people"](40)}
    settings = UnlearnSettings.build(CONFIGS[0].parent / "unlearn-people-smollm2.yaml", {"sae": Path("runs/sae")})
    asked = [corpus.source for corpus in settings.task().corpora if is_question_source(corpus.source)]
    assert {source.split(":")[1] for source in asked} == {"forget/8", "retain/24", "strangers/8"}
    for source in asked:
        assert {question.name for question in draw_questions(source, "test", 10_000)} <= taught


def test_there_are_configurations() -> None:
    assert len(TRAININGS) > 1


def test_the_variants_of_the_ablation_differ_from_the_default_and_can_be_trained() -> None:
    script = runpy.run_path(str(CONFIGS[0].parents[1] / "initialization_ablation.py"))
    default = MTTrainingSAEConfig(d_in=8, d_sae=64)
    for name, variant in script["VARIANTS"].items():
        cfg = MTTrainingSAEConfig(d_in=8, d_sae=64, **variant)
        assert all(getattr(cfg, field) != getattr(default, field) for field in variant), name


def test_the_script_is_the_papers_command() -> None:
    assert "run_paper" in runpy.run_path(str(CONFIGS[0].parents[1] / "reproduce_paper.py"))


def test_the_comparison_of_removal_trains_and_tries_weights_as_the_benchmark_does() -> None:
    script = runpy.run_path(str(CONFIGS[0].parents[1] / "benchmarks" / "removal.py"))
    assert {"train_weights", "try_weights"} <= set(script)
    assert "finetune" not in script


def test_the_table_of_signs_pairs_doses_of_one_size() -> None:
    script = runpy.run_path(str(CONFIGS[0].parents[1] / "benchmarks" / "signs.py"))
    settings = [(multiplier, rate) for rate in (0.01, None) for multiplier in (0, -2, 1, -3, 2, -4, 4, -6)]
    outcomes = [
        Outcome({"multiplier": multiplier, "false_positive_rate": rate}, 1.0 + multiplier, 0.1, 0.2, 5.0)
        for multiplier, rate in settings
    ]
    rows = list(script["rows"]("SAE", outcomes))
    assert rows[0] == "| SAE, gated, below zero | +1.00 (+0.200) | +2.00 (+0.200) | +3.00 (+0.200) | +5.00 (+0.200) |"
    assert rows[3] == "| SAE, no gate, amplified | -1.00 (+0.200) | -2.00 (+0.200) | -3.00 (+0.200) | -5.00 (+0.200) |"


def test_what_an_attack_on_a_removal_leaves_is_the_share_that_does_not_come_back() -> None:
    script = runpy.run_path(str(CONFIGS[0].parents[1] / "benchmarks" / "removal.py"))
    ones = torch.ones(3, dtype=torch.float64)
    before = EditLoss("a", ("x", "y", "z"), 1.0, ones, ones, 5 * ones)
    after = replace(before, nll_edited=torch.tensor([4.0, 4.0, 4.0], dtype=torch.float64))
    assert script["kept"](before, after, 0) == pytest.approx([0.75, 0.75, 0.75])
    assert script["kept"](replace(before, nll_edited=ones), after, 0) is None
