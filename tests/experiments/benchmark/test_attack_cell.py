"""Test attacks on a change: which text each is measured on, and that no attacker sees TEST text."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.experiments.benchmark import attack_cell
from mtsae_lens.experiments.benchmark.attack_cell import attack, n_filler_tokens
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.unlearning.attacks import dilute, quantize
from mtsae_lens.unlearning.changes import Change
from mtsae_lens.unlearning.measures.effects import as_logits, measure_model
from mtsae_lens.unlearning.recovery.perturbation import RecoverySettings

SIZES = (2, 4)
EDIT = FeatureEdit(tuple(range(16)), 2.0)
RECOVERY = RecoverySettings(n_steps=2, n_context_steps=1, n_random=1)


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any, dict[str, Any]]]:
    """Return what every attacker learned and what was measured."""
    found: list[tuple[Any, Any, dict[str, Any]]] = []
    original = attack_cell.relearn

    def relearn(lm: Any, table: Any, measured: Any, settings: Any, **how: Any) -> Any:
        found.append((table, measured[0], how))
        return original(lm, table, measured, settings, **how)

    monkeypatch.setattr(attack_cell, "relearn", relearn)
    return found


def test_attacks_on_an_edit(make_setup: Any, text_task: Any, learned: list[Any]) -> None:
    setup = make_setup(text_task)
    found = attack(setup, Change(EDIT), SIZES, 0, recovery=RECOVERY).to_json()
    json.dumps(found, allow_nan=False)
    assert set(found) == {"relearning", "dilution", "quantisation", "recovery"}
    assert set(found["recovery"]["by_subspace"]) == {"blind", "nearly blind", "any direction"}
    assert set(found["recovery"]["gains"]) == {"unedited", "reference"}
    assert {name: list(sizes) for name, sizes in found["relearning"].items()} == {
        "hook in place": ["2", "4"],
        "without the hook": ["2", "4"],
    }
    assert [how["hook_while_learning"] for _, _, how in learned] == [True, True, False, False]
    assert all(how["edit"] is EDIT for _, _, how in learned)
    lm, task = setup.lm, setup.task
    test = task.table(task.forget, "test", lm.cutter)
    for table, measured, _ in learned:
        assert measured.tokens.equal(test.tokens)
        assert not set(table.documents) & set(test.documents)
    (effect,) = Change(EDIT).effects(lm, {"": test}).values()
    for sizes in found["relearning"].values():
        for curve in sizes.values():
            assert [point["step"] for point in curve] == [0, 1, 2]
            assert curve[0]["nll"] == pytest.approx(effect.mean(effect.nll_edited), abs=1e-4)
            assert curve[0]["nll"] != curve[-1]["nll"]
    assert found["relearning"]["hook in place"]["4"][-1] != found["relearning"]["without the hook"]["4"][-1]


def test_both_models_are_attacked_alike(make_setup: Any, text_task: Any) -> None:
    setup = make_setup(text_task)
    found = attack(setup, Change(weights=setup.reference), SIZES, 0, recovery=RECOVERY).to_json()
    assert list(found["relearning"]) == ["weights"]
    assert list(found["recovery"]["by_subspace"]) == ["any direction"]
    lm, task = setup.lm, setup.task
    test = task.table(task.forget, "test", lm.cutter)
    for n_bits, row in found["quantisation"].items():
        models = [quantize(model, int(n_bits)) for model in (setup.reference, lm.model)]
        effect = measure_model(as_logits(models[0]), models[1], lm.cutter, test)
        assert (row["nll"], row["nll_clean"]) == pytest.approx(
            (effect.mean(effect.nll_edited), effect.mean(effect.nll_clean)), abs=1e-4
        )
    assert found["quantisation"]["4"]["nll_clean"] != found["quantisation"]["8"]["nll_clean"]
    assert found["dilution"]["n_tokens"] < int(test.counted(lm.cutter).sum())  # filler has taken half of each context
    assert found["dilution"]["n_tokens"] == len(test) * 15


def test_an_attacker_has_no_more_than_there_is(make_setup: Any, text_task: Any) -> None:
    setup = make_setup(text_task)
    found = attack(setup, Change(weights=setup.reference), (2, 400, 900), 0, recovery=RECOVERY).to_json()
    assert list(found["relearning"]["weights"]) == [
        "2",
        str(len(set(setup.training_table(text_task.forget_training).documents))),
    ]


def test_of_people_half_are_taught_and_the_others_asked(make_setup: Any, people_task: Any, learned: list[Any]) -> None:
    setup = make_setup(people_task)
    found = attack(setup, Change(EDIT), SIZES, 1, recovery=RECOVERY).to_json()
    json.dumps(found, allow_nan=False)
    assert set(found) == {"relearning", "dilution", "quantisation", "unseen", "recovery"}
    assert list(found["relearning"]) == ["hook in place", "without the hook", "half of the people"]
    table, measured, how = learned[-1]
    people = set(setup.training_table("facts:forget:known").documents)
    assert set(table.documents) < people
    assert len(set(table.documents)) == round(len(people) / 2)
    assert not set(table.documents) & set(measured.documents)
    assert set(measured.documents)
    assert how["hook_while_learning"]
    unseen = setup.task.table("facts:forget:unseen", "test", setup.lm.cutter)
    (effect,) = Change(EDIT).effects(setup.lm, {"": unseen}).values()
    assert found["unseen"]["nll"] == pytest.approx(effect.mean(effect.nll_edited), abs=1e-4)
    assert found["unseen"]["nll_clean"] == pytest.approx(effect.mean(effect.nll_clean), abs=1e-4)
    known = setup.task.table(setup.task.forget, "test", setup.lm.cutter)
    for learnt, _, _ in learned:
        rows = {tuple(row) for row in learnt.tokens.tolist()}
        assert not rows & {tuple(row) for row in known.tokens.tolist()}


def test_filler_is_what_fits_beside_the_longest_question(make_setup: Any, people_task: Any, text_task: Any) -> None:
    setup = make_setup(people_task)
    cutter, table = setup.lm.cutter, setup.task.table(setup.task.forget, "test", setup.lm.cutter)
    filler = setup.task.table(setup.task.sources("far")[0], "test", cutter)
    longest = table.tokens.shape[1]
    assert cutter.context_size == 32
    assert longest > 16  # half a context does not fit
    n_filler = n_filler_tokens(table, cutter)
    assert n_filler == 32 - longest > 0
    diluted = dilute(table, filler, cutter, n_filler)
    assert diluted.tokens.shape[1] == 32
    assert int(diluted.counted(cutter).sum()) == int(table.counted(cutter).sum())  # every answer is whole
    with pytest.raises(DataError, match="lower n_filler_tokens"):
        dilute(table, filler, cutter, n_filler + 1)
    lengths = (longest + 1, 2 * longest - 2, 2 * longest, 4 * longest)
    found = [n_filler_tokens(table, replace(cutter, context_size=length)) for length in lengths]
    assert found == [1, longest - 2, longest, 2 * longest]
    with pytest.raises(ConfigError, match=rf"context_size of at least {longest + 1}, .* got {longest}; give --context-size"):
        n_filler_tokens(table, replace(cutter, context_size=longest))
    text = make_setup(text_task)
    assert n_filler_tokens(text.task.table(text.task.forget, "test", cutter), cutter) == 16
