"""Test the low-rank weights of the benchmark: they imitate the edit, and are measured and attacked like other weights."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.experiments.benchmark import edit_cells, measuring
from mtsae_lens.experiments.benchmark.arms import OURS, BenchmarkSize
from mtsae_lens.experiments.benchmark.cells import MethodResult
from mtsae_lens.experiments.benchmark.edit_cells import LOW_RANK, edit_cell
from mtsae_lens.experiments.benchmark.low_rank_cell import add_hooks, can_imitate, imitate, measure_low_rank
from mtsae_lens.export.base_models import open_base
from mtsae_lens.export.low_rank import LowRankSettings
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.unlearning.changes import Change
from mtsae_lens.unlearning.measures.effects import edited_logits, measure_model

EDIT = FeatureEdit(tuple(range(16)), 2.0)
SETTINGS = LowRankSettings(rank=4, n_steps=30, batch_size=4, lr=0.05)


@pytest.mark.parametrize("prefix", ["", "bridge:"])
def test_hooks_are_added_in_memory_without_a_change_of_the_logits(prefix: str, make_setup: Any, text_task: Any) -> None:
    setup = replace(make_setup(text_task), model_name=f"{prefix}{make_setup(text_task).model_name}")
    base = open_base(setup.model_name)
    with torch.no_grad():
        for module in base.layers[1].modules():
            if isinstance(module, torch.nn.Linear):
                module.weight += 0.1 * torch.randn(module.weight.shape, generator=torch.Generator().manual_seed(0))
    tokens = torch.arange(40, 72)[None]
    with torch.no_grad():
        expected = base.model(tokens).logits.log_softmax(-1)
    clean = {name: value.clone() for name, value in setup.lm.model.named_parameters()}
    hooked = add_hooks(base, setup.lm.model)
    assert type(hooked) is type(setup.lm.model)
    assert hooked.cfg.n_ctx == setup.lm.model.cfg.n_ctx
    with torch.no_grad():
        torch.testing.assert_close(hooked(tokens, prepend_bos=False).log_softmax(-1), expected, atol=1e-4, rtol=0)
        before = load_language_model(setup.model_name)(tokens, prepend_bos=False).log_softmax(-1)
    assert (before - expected).abs().max() > 0.1
    assert all(torch.equal(value, clean[name]) for name, value in setup.lm.model.named_parameters())


def test_the_weights_come_near_the_edit(make_setup: Any, text_task: Any) -> None:
    setup = make_setup(text_task)
    lm = setup.lm
    weights = imitate(setup, EDIT, SETTINGS)
    table = setup.training_table(text_task.forget_training)
    teacher = edited_logits(lm, EDIT)

    def distance(change: Change) -> float:
        logits = change.logits(lm)
        with torch.no_grad():
            ours, theirs = (of(table.tokens)[:, 1:-1].log_softmax(-1) for of in (logits, teacher))
        return float((theirs.exp() * (theirs - ours)).sum(-1).mean())

    assert distance(Change(weights=weights)) < 0.75 * distance(Change(weights=lm.model))


def test_they_are_measured_and_attacked_whatever_they_cost(
    make_setup: Any, text_task: Any, size: BenchmarkSize, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = make_setup(text_task)
    monkeypatch.setattr(measuring, "read_sweep", lambda *args: {})
    short = replace(size, low_rank=replace(SETTINGS, n_steps=2))
    result = measure_low_rank(setup, short, EDIT, {"n_features": 16}, 0)
    json.dumps(result.to_json(), allow_nan=False)
    assert [outcome.setting for outcome in result.tune] == [{"n_features": 16, "rank": 4, "n_steps": 2, "lr": 0.05}]
    assert result.attacks is not None
    assert list(result.attacks.relearning) == ["weights"]
    assert list(result.attacks.relearning["weights"]) == ["2", "4"]
    assert set(result.attacks.quantization) == {"8", "4"}
    assert result.attacks.recovery is not None
    assert list(result.attacks.recovery.by_subspace) == ["any direction"]
    assert result.main is not None
    forget = setup.task.table(setup.task.forget, "test", setup.lm.cutter)
    weights = imitate(setup, EDIT, short.low_rank)
    effect = measure_model(Change(weights=weights).logits(setup.lm), setup.lm.model, setup.lm.cutter, forget)
    for curve in result.attacks.relearning["weights"].values():
        assert curve[0].nll == pytest.approx(effect.mean(effect.nll_edited), abs=1e-4)


@pytest.mark.parametrize(("architecture", "known"), [(OURS, True), (OURS, False), ("topk", True)])
def test_the_main_edit_of_an_attacked_mtsae_is_imitated(
    architecture: str, known: bool, make_setup: Any, text_task: Any, size: BenchmarkSize, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"0.02": 0, "0.05 goal": 1}
    monkeypatch.setattr(edit_cells, "read_sweep", lambda outcomes, *args: dict(places) if outcomes else {})
    monkeypatch.setattr(edit_cells, "can_imitate", lambda setup: known)
    monkeypatch.setattr(edit_cells, "measure_further", lambda *args: None)
    monkeypatch.setattr(edit_cells, "attack", lambda *args: None)
    imitated = []
    nothing = MethodResult(tune=(), test={})
    monkeypatch.setattr(edit_cells, "measure_low_rank", lambda *args: imitated.append(args) or nothing)
    cell = edit_cell(make_setup(text_task), size, architecture, 0, attacked=True)
    if architecture == OURS and known:
        ((_, _, edit, setting, seed),) = imitated
        main = cell.methods[OURS].tune[1].setting
        assert (setting, seed) == (main, 0)
        assert len(edit.features) == main["n_features"]
        assert list(cell.methods).index(LOW_RANK) == list(cell.methods).index(OURS) + 1
    else:
        assert not imitated
        assert LOW_RANK not in cell.methods


def test_models_and_hooks_that_cannot_be_exported_are_left_out(
    make_setup: Any, text_task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = make_setup(text_task)
    assert can_imitate(setup)
    setup.lm.splice.sae.cfg.metadata.hook_name = "blocks.0.attn.hook_z"
    assert not can_imitate(setup)
