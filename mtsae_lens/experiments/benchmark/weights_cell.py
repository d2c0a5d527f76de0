"""Measure methods that change weights, and the reference, under the protocol of the edits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.experiments.benchmark.arms import BenchmarkSize
from mtsae_lens.experiments.benchmark.attack_cell import attack
from mtsae_lens.experiments.benchmark.cells import MethodsCell, ReferenceCell
from mtsae_lens.experiments.benchmark.measuring import measure_weights, summarize_with_documents
from mtsae_lens.experiments.benchmark.setup import BenchmarkSetup
from mtsae_lens.unlearning.changes import Change, measure_further
from mtsae_lens.unlearning.finetuning.finetune import DivergedError, finetune
from mtsae_lens.unlearning.finetuning.sweeps import Sweep
from mtsae_lens.unlearning.sweep import Setting


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
    result = measure_weights(setup, size, list(train_weights(setup, runs, seed)), seed, attacked=attacked)
    return MethodsCell(methods={method: result})


def train_weights(setup: BenchmarkSetup, runs: Iterable[Sweep], seed: int) -> Iterator[tuple[Setting, AnyHookedModel]]:
    """Yield every snapshot of every run with its setting. A run that diverges ends early.

    Args:
        setup: the models and tables of the task, opened.
        runs: the runs to try.
        seed: seed of the order in which text is read.
    """
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
