"""Test that the reproduction has the paper's four steps and tiny learning rates."""

from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from mtsae_lens.experiments.paper import reproduction
from mtsae_lens.experiments.paper.published import METRICS, SETTINGS
from mtsae_lens.experiments.paper.reproduction import make_reproduction_trials
from mtsae_lens.experiments.paper.results import PaperRun
from mtsae_lens.experiments.paper.setup import PaperSetup
from mtsae_lens.training.recipe import TrainSettings, runner_config

CONFIG = Path(__file__).parents[3] / "examples" / "configs" / "paper.yaml"


@pytest.fixture(scope="module")
def run(setup: PaperSetup, tmp_path_factory: pytest.TempPathFactory) -> PaperRun:
    settings = replace(SETTINGS, context_size=32, buffer_size_sequences=96)
    return make_reproduction_trials(setup, settings, 1, tmp_path_factory.mktemp("paper"), 4)["seed_0"]()


def test_there_are_four_steps_at_four_thousandths_of_the_learning_rate_at_most(run: PaperRun) -> None:
    assert [row.step for row in run.curve] == [1, 2, 3, 4]
    assert [row.lr for row in run.curve] == pytest.approx([step / 1000 * SETTINGS.lr for step in (1, 2, 3, 4)])
    assert max(row.lr for row in run.curve) <= 0.00401 * SETTINGS.lr


def test_every_loss_term_is_there_and_they_sum_to_the_loss(run: PaperRun) -> None:
    for row in run.curve:
        assert row.overall_loss == pytest.approx(row.l2_loss + row.l1_loss + row.separation_loss, rel=1e-5)
        assert row.grad_norm > 0


def test_four_steps_change_nothing(run: PaperRun) -> None:
    assert 0 < run.largest_weight_change < 1e-5
    assert set(METRICS) <= set(run.trained)
    assert run.trained["explained_variance"] == pytest.approx(run.untrained["explained_variance"], abs=0.01)
    assert run.trained["explained_variance"] != run.untrained["explained_variance"]


def test_table_1_has_every_dilation(run: PaperRun) -> None:
    assert list(run.table_1) == ["1", "2", "4", "8"]
    assert all(row.std > 0 for row in run.table_1.values())


def test_the_example_configuration_is_the_same_run(setup: PaperSetup) -> None:
    """`mtsae train --config examples/configs/paper.yaml` and the reproduction give the runner one configuration."""
    typed = TrainSettings.build(CONFIG, {"d_sae": 4 * setup.d_in, "hook_name": setup.hook_name})
    ours = reproduction.runner_config(setup, SETTINGS, 0, typed.out)
    theirs = runner_config(typed, setup.d_in)
    named_apart = {"model_name", "dataset_path", "sae", "logger", "dead_feature_window", "n_batches_for_norm_estimate"}
    for field in fields(ours):
        if field.name not in named_apart:
            assert getattr(ours, field.name) == getattr(theirs, field.name), field.name
    assert asdict(ours.sae) == asdict(theirs.sae)
    assert typed.weight_decay == SETTINGS.weight_decay
    assert theirs.total_training_steps == 4
    assert theirs.n_batches_in_buffer * theirs.store_batch_size_prompts == SETTINGS.buffer_size_sequences
