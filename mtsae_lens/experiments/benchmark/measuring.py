"""Measure changed weights under the protocol of the edits: choose on TUNE, measure on TEST, attack the main setting."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.experiments.benchmark.arms import BenchmarkSize
from mtsae_lens.experiments.benchmark.attack_cell import attack
from mtsae_lens.experiments.benchmark.cells import MeasuredCorpus, MethodResult, ReadSetting
from mtsae_lens.experiments.benchmark.reading import find_main_place, read_sweep
from mtsae_lens.experiments.benchmark.setup import BenchmarkSetup
from mtsae_lens.records import fields_of
from mtsae_lens.unlearning.changes import Change, measure_further, summarize_documents, summarize_effect
from mtsae_lens.unlearning.measures.effects import as_logits, model_losses
from mtsae_lens.unlearning.measures.results import EditEffect
from mtsae_lens.unlearning.sweep import Outcome, Setting, summarize_outcome
from mtsae_lens.unlearning.task import SPARED


def measure_weights(
    setup: BenchmarkSetup,
    size: BenchmarkSize,
    trained: Sequence[tuple[Setting, AnyHookedModel]],
    seed: int,
    *,
    attacked: bool,
    main: int | None = None,
) -> MethodResult:
    """Measure changed weights: each model is an outcome on TUNE, and the chosen ones are measured on TEST.

    Args:
        setup: the models and tables of the task, opened.
        size: how much work to do.
        trained: settings with the models that they gave.
        seed: seed of the resampling of documents and of the attacks.
        attacked: whether the main model is measured in full and attacked.
        main: index of the main model if no model is within the budget; None if there is no main model then.
    """
    lm, task = setup.lm, setup.task
    outcomes = try_weights(setup, trained)
    places = read_sweep(outcomes, math.log(lm.model.cfg.d_vocab), setup.goal)
    tables = task.tables("test", lm.cutter)
    corpora: dict[int, dict[str, MeasuredCorpus]] = {}
    for place in dict.fromkeys(places.values()):
        effects = Change(weights=trained[place][1]).effects(lm, tables)
        corpora[place] = {source: summarize_with_documents(effect, seed) for source, effect in effects.items()}
    test = {name: ReadSetting(setting=trained[place][0], corpora=corpora[place]) for name, place in places.items()}
    chosen, further, harm = find_main_place(places), None, None
    chosen = main if chosen is None else chosen
    if attacked and chosen is not None:
        change = Change(weights=trained[chosen][1])
        further = measure_further(lm, task, change, setup.reference, seed)
        harm = attack(setup, change, size.relearned_documents, seed, size.n_relearning_steps, size.recovery)
    return MethodResult(tune=tuple(outcomes), test=test, main=further, attacks=harm)


def try_weights(setup: BenchmarkSetup, trained: Sequence[tuple[Setting, AnyHookedModel]]) -> list[Outcome]:
    """Measure changed weights on TUNE. The text is read once for all models.

    Args:
        setup: the models and tables of the task, opened.
        trained: settings with the models that they gave.

    Returns:
        One outcome per model.
    """
    lm, task = setup.lm, setup.task
    tables = task.tables("tune", lm.cutter, ("forget", *SPARED))
    models = [as_logits(weights, lm.cutter) for _, weights in trained]
    losses = {source: model_losses(models, lm.model, lm.cutter, table, lm.batch_size) for source, table in tables.items()}
    return [
        summarize_outcome(task, setting, {source: of_source[place] for source, of_source in losses.items()})
        for place, (setting, _) in enumerate(trained)
    ]


def summarize_with_documents(effect: EditEffect, seed: int) -> MeasuredCorpus:
    """Summarize an effect with its documents, from which intervals over seeds are computed later.

    Args:
        effect: what was measured.
        seed: seed of the resampling of documents.
    """
    return MeasuredCorpus(**fields_of(summarize_effect(effect, seed)), documents=summarize_documents(effect))
