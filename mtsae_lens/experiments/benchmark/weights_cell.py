"""Methods that change weights, and the reference, under the protocol of the edits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sae_lens import HookedSAETransformer

from mtsae_lens.experiments.benchmark.arms import Scale
from mtsae_lens.experiments.benchmark.attack_cell import attacks
from mtsae_lens.experiments.benchmark.edit_cells import test_row
from mtsae_lens.experiments.benchmark.reading import main_place, read_sweep, tune_rows
from mtsae_lens.experiments.benchmark.setup import Subject
from mtsae_lens.unlearning.changes import Change, further_measures
from mtsae_lens.unlearning.finetuning.finetune import DivergedError, finetune
from mtsae_lens.unlearning.finetuning.sweeps import Sweep
from mtsae_lens.unlearning.measures.effects import as_logits, model_losses
from mtsae_lens.unlearning.sweep import outcome
from mtsae_lens.unlearning.task import SPARED


def weights_cell(
    subject: Subject, scale: Scale, method: str, runs: tuple[Sweep, ...], seed: int, *, attacked: bool
) -> dict[str, Any]:
    """One method: every snapshot of every run is an outcome on TUNE, and the chosen ones are measured on TEST.

    The models of all snapshots are in memory at once.
    """
    subject = subject.opened()
    lm, task = subject.lm, subject.task
    tables = task.tables("tune", lm.cutter, ("forget", *SPARED))
    trained = list(_trained(subject, runs, seed))
    models = [as_logits(weights, lm.cutter) for _, weights in trained]
    losses = {source: model_losses(models, lm.model, lm.cutter, table, lm.batch_size) for source, table in tables.items()}
    outcomes = [
        outcome(task, setting, {source: of_source[place] for source, of_source in losses.items()})
        for place, (setting, _) in enumerate(trained)
    ]
    places = read_sweep(outcomes, math.log(lm.model.cfg.d_vocab), subject.goal)
    result: dict[str, Any] = {"tune": tune_rows(outcomes), "test": {}}
    tables = task.tables("test", lm.cutter)
    rows: dict[int, dict[str, Any]] = {}
    for name, place in places.items():
        setting, weights = trained[place]
        if place not in rows:
            effects = Change(weights=weights).effects(lm, tables)
            rows[place] = {source: test_row(effect, seed) for source, effect in effects.items()}
        result["test"][name] = {"setting": setting, "corpora": rows[place]}
    main = main_place(places)
    if attacked and main is not None:
        change = Change(weights=trained[main][1])
        result["main"] = further_measures(lm, task, change, subject.reference, seed)
        result["attacks"] = attacks(subject, change, scale.relearned_documents, seed, scale.n_relearning_steps)
    return {"methods": {method: result}}


def _trained(subject: Subject, runs: tuple[Sweep, ...], seed: int) -> Iterator[tuple[dict[str, Any], HookedSAETransformer]]:
    forget = subject.training_table(subject.task_of.forget_training)
    retain = [subject.training_table(source) for source in subject.task_of.retain_training]
    for run in runs:
        settings = replace(run.settings, seed=seed)
        try:
            for snapshot in finetune(subject.lm.model, run.loss, forget, retain, subject.lm.cutter, settings):
                yield {"loss": repr(run.loss), "lr": run.settings.lr, "step": snapshot.step}, snapshot.model
        except DivergedError:
            continue  # what came before it is kept; on another model a rate may be too high


def reference_cell(subject: Subject, scale: Scale, *, attacked: bool) -> dict[str, Any]:
    """The model that was trained without the text: what complete forgetting looks like, and how fast it learns.

    `main` and `untouched`: what is measured of an edit in full, of the reference itself and of the model before any change.
    """
    subject = subject.opened()
    lm, task, reference = subject.lm, subject.task, subject.reference
    assert reference is not None
    change = Change(weights=reference)
    effects = change.effects(lm, task.tables("test", lm.cutter))
    result: dict[str, Any] = {
        "corpora": {source: test_row(effect, 0) for source, effect in effects.items()},
        "main": further_measures(lm, task, change, reference, 0),
        "untouched": further_measures(lm, task, Change(), reference, 0),
    }
    if attacked:
        result["attacks"] = attacks(subject, change, scale.relearned_documents, 0, scale.n_relearning_steps)
    return result
