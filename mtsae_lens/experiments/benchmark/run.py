"""Run every way to unlearn under one protocol, resumable, with a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.file_stamps import model_stamps, text_stamps
from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.data.questions import is_question_source
from mtsae_lens.data.token_tables import read_tokens
from mtsae_lens.data.vocabularies import check_reference
from mtsae_lens.errors import ModelError
from mtsae_lens.evaluation.fidelity import evaluate_fidelity
from mtsae_lens.experiments.benchmark.arms import QUICK_LOSSES, BenchmarkSize, BenchmarkTask
from mtsae_lens.experiments.benchmark.attack_cell import RELEARNING
from mtsae_lens.experiments.benchmark.cells import Cell, read_cell
from mtsae_lens.experiments.benchmark.edit_cells import edit_cell
from mtsae_lens.experiments.benchmark.report import benchmark_part
from mtsae_lens.experiments.benchmark.settings import BenchmarkSettings
from mtsae_lens.experiments.benchmark.setup import BenchmarkSetup
from mtsae_lens.experiments.benchmark.stability_cell import stability_cell
from mtsae_lens.experiments.benchmark.weights_cell import reference_cell, weights_cell
from mtsae_lens.interruption import GOES_ON, interrupt_on_signal
from mtsae_lens.opening import load_sae
from mtsae_lens.output_folders import in_output_folder
from mtsae_lens.records import Stopwatch, provenance, write_metrics
from mtsae_lens.reporting.page import Table, write_report
from mtsae_lens.splice.edit_interface import SUPPRESSION
from mtsae_lens.training.recipe import TrainSettings, train_sae
from mtsae_lens.trials import run_trials
from mtsae_lens.unlearning.finetuning.losses import OfAllWeights
from mtsae_lens.unlearning.finetuning.rep_select import RepSelect
from mtsae_lens.unlearning.finetuning.sweeps import LOSSES, Sweep, sweeps_of
from mtsae_lens.unlearning.task import check_corpus

_OF_TRAINING = ("training_tokens", "d_sae")
"""Parts of the size that the SAEs depend on. A change of any other leaves them as they are."""


@interrupt_on_signal(GOES_ON, keep_inner_message=True)
@in_output_folder
def run_benchmark(settings: BenchmarkSettings) -> tuple[dict[str, Any], list[Table]]:
    """Train the SAEs, run every method on every task, and write `metrics.json` and `report.html`.

    `metrics.json` has `at_cost`, `differences`, `goal` and `attacks` by task, and `saes` and `provenance`. Every training and every
    cell is saved as soon as it is done; the same call resumes the work.

    Args:
        settings: what to run.

    Returns:
        The metrics, and the tables to print.
    """
    watch = Stopwatch()
    tasks = settings.benchmark_tasks()
    for benchmark_task in tasks.values():
        for corpus in benchmark_task.task(1).corpora:
            check_corpus(corpus.source)
    _check_reference(settings)
    size = settings.size()
    shared = {"model", "hook_name", "dataset", "saes"}
    shared |= _given(settings, "context_size", "prepend_bos")
    trained_on = model_stamps(settings.model) | text_stamps(settings.dataset)
    trained = run_trials(
        settings.out / "training",
        {"scale": {name: getattr(size, name) for name in _OF_TRAINING}}
        | settings.model_dump(mode="json", include=shared)
        | trained_on,
        {f"{a}/{seed}": partial(_train, settings.training(a, seed)) for seed in settings.seeds() for a in settings.saes},
        "training SAEs",
        n_workers=settings.n_workers,
    )
    kept = run_trials(
        settings.out / "cells",
        {"scale": asdict(size), "attacked": settings.n_attacked_seeds}
        | settings.model_dump(
            mode="json",
            include={"reference", "forget", "near", "retain", *shared} | _given(settings, "neutral", "first_trained_layer"),
        )
        | {"methods": _methods(settings, tasks)}
        | trained_on
        | model_stamps(settings.reference)
        | text_stamps(*(corpus.source for task in tasks.values() for corpus in task.corpora)),
        {name: partial(_run_timed, cell) for name, cell in _cells(settings, tasks, size).items()},
        "unlearning",
        n_workers=settings.n_workers,
    )
    cells = {name: read_cell(name, content) for name, content in kept.items()}
    part = benchmark_part(trained, cells, tasks, size, list(settings.saes))
    metrics = part.metrics | {"provenance": provenance(0, watch.seconds, settings.model_dump(mode="json"))}
    write_metrics(settings.out, metrics)
    lead = (
        f"Edits of SAE features, edits of a dense direction, methods that change weights, and retraining, on {settings.model}. Settings are "
        f"chosen on SELECT, tuned on TUNE, measured once on TEST, and compared at the same cost on text to keep. The measurements took "
        f"{part.metrics['seconds_of_cells'] / 60:.0f} minutes of one process, without the training of SAEs. {SUPPRESSION}"
    )
    write_report(settings.out, "Unlearning, compared", lead, part.sections, metrics["provenance"])
    return metrics, part.tables


def _default(name: str) -> Any:
    return BenchmarkSettings.model_fields[name].default


def _given(settings: BenchmarkSettings, *names: str) -> set[str]:
    """Return which of some settings are not their defaults; leaving the others out keeps results of earlier versions valid."""
    return {name for name in names if getattr(settings, name) != _default(name)}


def _check_reference(settings: BenchmarkSettings) -> None:
    """Check before any work that the reference's loss can be compared with the model's."""
    if settings.reference is None:
        return
    model, reference = (load_language_model(name, device=settings.device) for name in (settings.model, settings.reference))
    assert model.tokenizer is not None
    try:
        check_reference(
            reference, model, ContextCutter(model.tokenizer, settings.context_size, prepend_bos=settings.prepend_bos)
        )
    except ModelError as error:
        raise ModelError(
            f"{error} (--reference; if there is no reference, put 'reference: null' into a --config file)"
        ) from error


def _losses(settings: BenchmarkSettings) -> Sequence[str]:
    return (QUICK_LOSSES if settings.quick else tuple(LOSSES)) if settings.losses is None else settings.losses


def _sweeps(task: BenchmarkTask, loss: str, first_layer: int) -> tuple[Sweep, ...]:
    """Return the runs of a loss. `first_layer` bounds the losses that train weights of every layer."""
    sweeps = sweeps_of(loss, "questions" if is_question_source(task.forget_training) else "text")
    return tuple(
        replace(sweep, settings=replace(sweep.settings, first_layer=first_layer))
        if isinstance(sweep.loss, OfAllWeights | RepSelect)
        else sweep
        for sweep in sweeps
    )


def _methods(settings: BenchmarkSettings, tasks: Mapping[str, BenchmarkTask]) -> dict[str, Any]:
    """Return what results depend on besides the settings: roles, training text, runs of methods that change weights, the attacker."""
    return {
        name: {
            "corpora": {corpus.source: corpus.role for corpus in task.corpora},
            "trained on": [task.forget_training, *task.retain_training],
            "sweeps": {loss: repr(_sweeps(task, loss, settings.first_trained_layer)) for loss in _losses(settings)},
            "relearning": repr(RELEARNING),
        }
        for name, task in tasks.items()
    }


def _run_timed(make_cell: Callable[[], Cell]) -> dict[str, Any]:
    watch = Stopwatch()
    return replace(make_cell(), seconds=watch.seconds).to_json()


def _cells(settings: BenchmarkSettings, tasks: dict[str, BenchmarkTask], size: BenchmarkSize) -> dict[str, Callable[[], Cell]]:
    """Return the functions that compute the cells, seed by seed, so that a stopped run has results of all methods."""
    cells: dict[str, Callable[[], Cell]] = {}
    for seed in settings.seeds():
        attacked = seed < settings.n_attacked_seeds
        for name, benchmark_task in tasks.items():
            for architecture in settings.saes:
                setup = _setup(settings, benchmark_task, size, architecture, seed)
                cells[f"{name}/{architecture}/{seed}"] = partial(edit_cell, setup, size, architecture, seed, attacked=attacked)
            setup = _setup(settings, benchmark_task, size, next(iter(settings.saes)), seed)
            for loss in _losses(settings):
                runs = _sweeps(benchmark_task, loss, settings.first_trained_layer)
                cells[f"{name}/{loss}/{seed}"] = partial(weights_cell, setup, size, loss, runs, seed, attacked=attacked)
            if seed == 0 and settings.reference is not None:
                cells[f"{name}/reference"] = partial(reference_cell, setup, size, attacked=settings.n_attacked_seeds > 0)
    for name, benchmark_task in tasks.items():
        for architecture in settings.saes:
            setups = [_setup(settings, benchmark_task, size, architecture, seed) for seed in settings.seeds()]
            cells[f"{name}/stability/{architecture}-{len(setups)}"] = partial(stability_cell, setups)
    return cells


def _setup(
    settings: BenchmarkSettings, task: BenchmarkTask, size: BenchmarkSize, architecture: str, seed: int
) -> BenchmarkSetup:
    folder = settings.training(architecture, seed).out
    return BenchmarkSetup(
        task,
        size.contexts_per_split,
        settings.model,
        settings.reference,
        folder,
        settings.device,
        settings.first_trained_layer,
    )


def _train(settings: TrainSettings) -> dict[str, float]:
    """Train an SAE and measure it on held-out text."""
    model = load_language_model(settings.model, device=settings.device)
    train_sae(settings, model, resume=True)
    assert model.tokenizer is not None
    cutter = ContextCutter(model.tokenizer, settings.context_size, prepend_bos=settings.prepend_bos)
    held_out = read_tokens(settings.dataset, "tune", cutter, 64)
    return evaluate_fidelity(load_sae(settings.out, settings.device), model, cutter, held_out)
