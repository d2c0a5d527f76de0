"""Test SAEs that are compared under a name of their own: with memory, with a frozen decoder, not trained, and a transcoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mtsae_lens.errors import ConfigError
from mtsae_lens.experiments.benchmark import edit_cells, run
from mtsae_lens.experiments.benchmark.arms import SAES, BenchmarkSize
from mtsae_lens.experiments.benchmark.edit_cells import edit_cell
from mtsae_lens.experiments.benchmark.planning import training_settings
from mtsae_lens.experiments.benchmark.settings import BenchmarkSettings
from mtsae_lens.training.recipe import TrainSettings, train_sae

CONTROLS: dict[str, dict[str, Any]] = {
    "memory": {"architecture": "mtsae", "memory": "predictive", "k": 4},
    "frozen_decoder": {"architecture": "topk", "frozen": "decoder", "k": 4},
    "untrained": {"architecture": "topk", "frozen": "all", "k": 4},
    "transcoder": {
        "architecture": "mtsae_transcoder",
        "hook_name": "blocks.0.hook_resid_pre",
        "hook_name_out": "blocks.1.hook_attn_out",
        "k": 4,
    },
}
BESIDE_THE_SETTINGS = ("architecture", "frozen", "hook_name", "hook_name_out")


def test_a_name_is_the_architecture_unless_one_is_given(tmp_path: Path) -> None:
    settings = BenchmarkSettings(out=tmp_path, saes=SAES | CONTROLS)
    of = {name: settings.training(name, 0) for name in settings.saes}
    assert [(of[name].architecture, of[name].frozen, of[name].sae) for name in CONTROLS] == [
        ("mtsae", None, {"memory": "predictive", "k": 4}),
        ("topk", "decoder", {"k": 4}),
        ("topk", "all", {"k": 4}),
        ("mtsae_transcoder", None, {"k": 4}),
    ]
    hooks = [(of[name].hook_name, of[name].hook_name_out) for name in ("memory", "transcoder")]
    assert hooks == [(settings.hook_name, None), ("blocks.0.hook_resid_pre", "blocks.1.hook_attn_out")]
    assert len({training.out for training in of.values()}) == len(of)
    for name in SAES:
        assert (of[name].architecture, of[name].frozen, of[name].sae) == (name, None, SAES[name])


def test_what_is_frozen_belongs_to_the_record_of_an_sae_and_earlier_records_stay_valid() -> None:
    settings = BenchmarkSettings(saes=CONTROLS | {"topk": {"k": 4}})
    of = {name: training_settings(settings, name, 0) for name in settings.saes}
    assert "frozen" not in of["topk"]
    assert of["untrained"] == of["topk"] | {"frozen": "all"}
    assert of["frozen_decoder"] == of["topk"] | {"frozen": "decoder"}
    assert "hook_name_out" not in of["topk"]
    assert of["transcoder"]["hook_name_out"] == "blocks.1.hook_attn_out"


@pytest.mark.parametrize(
    ("saes", "message"),
    [
        ({"npo": {"architecture": "topk"}}, "that no method has, got 'npo'"),
        ({"stability": {"architecture": "topk"}}, "got 'stability'"),
        ({"a/b": {"architecture": "topk"}}, "got 'a/b'"),
        ({"topk": {"frozen": "encoder"}}, "expected frozen of decoder or all or None, got 'encoder'"),
        ({"topk": {"architecture": 3}}, "expected the name of an architecture, got 3"),
    ],
)
def test_names_and_settings_are_checked(saes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BenchmarkSettings(saes=saes)


@pytest.mark.parametrize("name", CONTROLS)
def test_each_has_its_gate_and_its_matched_random_features(
    name: str,
    make_setup: Any,
    text_task: Any,
    size: BenchmarkSize,
    tiny_settings: Callable[..., TrainSettings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # chosen by hand, because the tiny model is worse than a uniform guess and nothing would be chosen
    monkeypatch.setattr(edit_cells, "read_sweep", lambda outcomes, *args: {"0.05 goal": 0} if outcomes else {})
    given = dict(CONTROLS[name])
    changes = {key: given.pop(key) for key in BESIDE_THE_SETTINGS if key in given}
    train_sae(tiny_settings(tmp_path / "sae", sae=given, b_dec_init="zeros", training_tokens=20 * 4 * 32, **changes))
    setup = replace(make_setup(text_task), sae_folder=tmp_path / "sae")
    cell = edit_cell(setup, size, name, 0, attacked=False)
    assert list(cell.methods) == [name, f"{name}, no gate"]
    read = cell.methods[name].test["0.05 goal"]
    assert read.setting["false_positive_rate"] is not None
    assert set(read.corpora) == {corpus.source for corpus in text_task.corpora}
    assert read.random is not None
    assert all(control.n_draws == size.n_random_draws for control in read.random.values())


def test_a_transcoder_is_measured_at_the_hook_that_it_decodes(
    tiny_settings: Callable[..., TrainSettings], tmp_path: Path
) -> None:
    hooks = {"hook_name": "blocks.0.hook_resid_pre", "hook_name_out": "blocks.1.hook_attn_out"}
    trained = run._train(tiny_settings(tmp_path / "sae", training_tokens=4 * 4 * 32, **hooks))
    assert trained.metrics["l0"] == pytest.approx(4, abs=0.5)
    assert "explained_variance_with_another_past" in trained.metrics
