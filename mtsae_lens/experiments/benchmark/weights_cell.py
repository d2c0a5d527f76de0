"""Measure methods that change weights, and the reference, under the protocol of the edits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.experiments.benchmark.arms import BenchmarkSize
from mtsae_lens.experiments.benchmark.attack_cell import attack
from mtsae_lens.experiments.benchmark.cells import MeasuredCorpus, MethodResult, MethodsCell, ReadSetting, ReferenceCell
from mtsae_lens.experiments.benchmark.edit_cells import summarize_with_documents
from mtsae_lens.experiments.benchmark.reading import find_main_place, read_sweep
from mtsae_lens.experiments.benchmark.setup import BenchmarkSetup
from mtsae_lens.unlearning.changes import Change, measure_further
from mtsae_lens.unlearning.finetuning.finetune import DivergedError, finetune
from mtsae_lens.unlearning.finetuning.sweeps import Sweep
from mtsae_lens.unlearning.measures.effects import as_logits, model_losses
from mtsae_lens.unlearning.sweep import Setting, summarize_outcome
from mtsae_lens.unlearning.task import SPARED


def weights_cell(
    setup: BenchmarkSetup, size: BenchmarkSize, method: str, runs: tuple[Sweep, ...], seed: int, *, attacked: bool
) -> MethodsCell:
    """Measure one method: every snapshot of every run is an outcome on TUNE, and the chosen snapshots are measured on TEST.

    The models of all snapshots are in memory at once.

    Args:
        setup: the models and tables of the task.
        size: how much work to do.
        method: name of the loss.
        runs: the runs to try.
        seed: seed of the order in which text is read.
        attacked: whether the main model is measured in full and attacked.
    """
    setup = setup.opened()
    lm, task = setup.lm, setup.task
    tables = task.tables("tune", lm.cutter, ("forget", *SPARED))
    trained = list(_trained(setup, runs, seed))
    models = [as_logits(weights, lm.cutter) for _, weights in trained]
    losses = {source: model_losses(models, lm.model, lm.cutter, table, lm.batch_size) for source, table in tables.items()}
    outcomes = [
        summarize_outcome(task, setting, {source: of_source[place] for source, of_source in losses.items()})
        for place, (setting, _) in enumerate(trained)
    ]
    places = read_sweep(outcomes, math.log(lm.model.cfg.d_vocab), setup.goal)
    tables = task.tables("test", lm.cutter)
    corpora: dict[int, dict[str, MeasuredCorpus]] = {}
    for place in dict.fromkeys(places.values()):
        effects = Change(weights=trained[place][1]).effects(lm, tables)
        corpora[place] = {source: summarize_with_documents(effect, seed) for source, effect in effects.items()}
    test = {name: ReadSetting(setting=trained[place][0], corpora=corpora[place]) for name, place in places.items()}
    main, further, harm = find_main_place(places), None, None
    if attacked and main is not None:
        change = Change(weights=trained[main][1])
        further = measure_further(lm, task, change, setup.reference, seed)
        harm = attack(setup, change, size.relearned_documents, seed, size.n_relearning_steps, size.recovery)
    return MethodsCell(methods={method: MethodResult(tune=tuple(outcomes), test=test, main=further, attacks=harm)})


def _trained(setup: BenchmarkSetup, runs: tuple[Sweep, ...], seed: int) -> Iterator[tuple[Setting, AnyHookedModel]]:
    forget = setup.training_table(setup.task_of.forget_training)
    retain = [setup.training_table(source) for source in setup.task_of.retain_training]
    for run in runs:
        settings = replace(run.settings, seed=seed)
        try:
            for snapshot in finetune(setup.lm.model, run.loss, forget, retain, setup.lm.cutter, settings):
                yield {"loss": repr(run.loss), "lr": run.settings.lr, "step": snapshot.step}, snapshot.model
        except DivergedError:
            continue  # earlier snapshots are kept; a learning rate may be too high for another model


def reference_cell(setup: BenchmarkSetup, size: BenchmarkSize, *, attacked: bool) -> ReferenceCell:
    """Measure the reference: what complete forgetting looks like, and how fast that model learns the text.

    Args:
        setup: the models and tables of the task.
        size: how much work to do.
        attacked: whether the reference is trained on the text as an attacker would.
    """
    setup = setup.opened()
    lm, task, reference = setup.lm, setup.task, setup.reference
    assert reference is not None
    change = Change(weights=reference)
    effects = change.effects(lm, task.tables("test", lm.cutter))
    return ReferenceCell(
        corpora={source: summarize_with_documents(effect, 0) for source, effect in effects.items()},
        main=measure_further(lm, task, change, reference, 0),
        untouched=measure_further(lm, task, Change(), reference, 0),
        attacks=attack(setup, change, size.relearned_documents, 0, size.n_relearning_steps, size.recovery)
        if attacked
        else None,
    )
