"""Methods that change weights, and the reference, under the protocol of the edits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sae_lens import HookedSAETransformer

from mtsae_lens.benchmark.attack_cell import attacks
from mtsae_lens.benchmark.edit_cells import test_row
from mtsae_lens.benchmark.reading import read_sweep, tune_rows
from mtsae_lens.benchmark.subject import Subject
from mtsae_lens.benchmark.weight_sweeps import WeightArm
from mtsae_lens.unlearning.changes import Change, further_measures
from mtsae_lens.unlearning.finetuning import finetune
from mtsae_lens.unlearning.sweep import Outcome, outcome
from mtsae_lens.unlearning.task import SPARED


def weights_cell(subject: Subject, method: str, arms: tuple[WeightArm, ...], seed: int, *, attacked: bool) -> dict[str, Any]:
    """One method: every rate and every snapshot is an outcome on TUNE; the chosen ones are made again for TEST."""
    lm, task = subject.lm, subject.task
    tables = task.tables("tune", lm.cutter, ("forget", *SPARED))
    outcomes = [
        outcome(task, setting, Change(weights=weights).effects(lm, tables))
        for setting, weights in _trained(subject, arms, seed)
    ]
    places = read_sweep(outcomes, math.log(lm.model.cfg.d_vocab), subject.goal)
    result: dict[str, Any] = {"tune": tune_rows(outcomes), "test": {}}
    if places:
        _measure(subject, arms, outcomes, places, seed, result, attacked=attacked)
    return {"methods": {method: result}}


def _trained(subject: Subject, arms: tuple[WeightArm, ...], seed: int) -> Iterator[tuple[dict[str, Any], HookedSAETransformer]]:
    forget = subject.training_table(subject.task_of.forget_training)
    retain = [subject.training_table(source) for source in subject.task_of.retain_training]
    for arm in arms:
        settings = replace(arm.settings, seed=seed)
        for snapshot in finetune(subject.lm.model, arm.loss, forget, retain, subject.lm.cutter, settings):
            yield {"loss": repr(arm.loss), "lr": arm.settings.lr, "step": snapshot.step}, snapshot.model


def _measure(
    subject: Subject,
    arms: tuple[WeightArm, ...],
    outcomes: list[Outcome],
    places: dict[str, int],
    seed: int,
    result: dict[str, Any],
    *,
    attacked: bool,
) -> None:
    tables = subject.task.tables("test", subject.lm.cutter)
    wanted = set(places.values())
    for place, (setting, weights) in enumerate(_trained(subject, arms, seed)):
        if place not in wanted:
            continue
        change = Change(weights=weights)
        effects = change.effects(subject.lm, tables)
        rows = {source: test_row(effect, seed) for source, effect in effects.items()}
        for name in (name for name, chosen in places.items() if chosen == place):
            result["test"][name] = {"setting": setting, "corpora": rows}
        if place == places.get("goal"):
            result["goal"] = further_measures(subject.lm, subject.task, change, subject.reference, seed)
            if attacked:
                result["attacks"] = attacks(subject, change, seed)
        if place == max(wanted):
            return


def reference_cell(subject: Subject, *, attacked: bool) -> dict[str, Any]:
    """The model that was trained without the text: what complete forgetting looks like, and how fast it learns."""
    assert subject.reference is not None
    change = Change(weights=subject.reference)
    effects = change.effects(subject.lm, subject.task.tables("test", subject.lm.cutter))
    result: dict[str, Any] = {"corpora": {source: test_row(effect, 0) for source, effect in effects.items()}}
    if attacked:
        result["attacks"] = attacks(subject, change, 0)
    return result
