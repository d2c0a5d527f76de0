"""Run every way to unlearn under one protocol, resumable, with a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from sae_lens import Transcoder

from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.language_models import load_language_model, resolve_hook
from mtsae_lens.data.questions import is_question_source
from mtsae_lens.data.token_tables import read_tokens
from mtsae_lens.data.vocabularies import check_reference
from mtsae_lens.digests import digest_file
from mtsae_lens.errors import DataError, ModelError
from mtsae_lens.evaluation.fidelity import evaluate_fidelity
from mtsae_lens.evaluation.transcoding import evaluate_transcoder
from mtsae_lens.experiments.benchmark.attack_cell import n_filler_tokens
from mtsae_lens.experiments.benchmark.cells import Cell, read_cell
from mtsae_lens.experiments.benchmark.planning import plan_cells, training_settings
from mtsae_lens.experiments.benchmark.report import BenchmarkReport, report_benchmark
from mtsae_lens.experiments.benchmark.results import BenchmarkResult, TrainedSAE
from mtsae_lens.experiments.benchmark.settings import BenchmarkSettings
from mtsae_lens.experiments.benchmark.task_results import TaskResults
from mtsae_lens.experiments.parts import as_json
from mtsae_lens.interruption import GOES_ON, interrupt_on_signal
from mtsae_lens.opening import load_sae
from mtsae_lens.output_folders import in_output_folder
from mtsae_lens.ranks import current_ranks
from mtsae_lens.records import Stopwatch, provenance, write_metrics
from mtsae_lens.reporting.page import write_report
from mtsae_lens.splice.edit_interface import SUPPRESSION
from mtsae_lens.splice.hook_checks import check_order_in
from mtsae_lens.training.recipe import TrainSettings, train_sae
from mtsae_lens.trials import run_trials_by_settings
from mtsae_lens.unlearning.task import check_corpus
from mtsae_lens.upstream import SAE_WEIGHTS_FILENAME


@interrupt_on_signal(GOES_ON, keep_inner_message=True)
@in_output_folder
def run_benchmark(settings: BenchmarkSettings) -> tuple[BenchmarkResult, BenchmarkReport]:
    """Train the SAEs, run every method on every task, and write `metrics.json` (the result and its `provenance`) and `report.html`.

    Every training and every cell is saved as soon as it is done. The same call resumes the work, and a call with other settings computes
    only the cells that depend on them. Several ranks (`mtsae_lens.ranks`) share the trainings and the cells, and the first one writes.

    Args:
        settings: what to run.

    Returns:
        What was measured, and the sentences and tables to print.

    Raises:
        ConfigError: contexts are too short to attack questions.
        DataError: a text does not exist, a question is longer than a context, or a saved result is damaged.
        ModelError: the reference cannot be compared with the model.
        TrainingInterrupted: a signal arrived; the same call resumes the work.
    """
    watch = Stopwatch()
    tasks = settings.benchmark_tasks()
    for benchmark_task in tasks.values():
        for corpus in benchmark_task.task(1).corpora:
            check_corpus(corpus.source)
    _check_reference(settings)
    _check_questions(settings)
    _check_hooks(settings)
    trained = _train_all(settings)
    cells = _measure_all(settings, trained)
    n_contexts = settings.size().contexts_per_split
    hooks = {name: _hooks_of(settings.training(name, 0)) for name in settings.saes}
    of_tasks = [TaskResults(name, task.task(n_contexts), cells, list(hooks)) for name, task in tasks.items()]
    result = BenchmarkResult(
        saes={name: sae.metrics for name, sae in trained.items()},
        seconds_of_cells=sum(cell.seconds or 0.0 for cell in cells.values()),
        tasks={results.name: results.comparison() for results in of_tasks},
    )
    found = report_benchmark(result, of_tasks, hooks)
    made = provenance(0, watch.seconds, settings.model_dump(mode="json"))
    lead = (
        f"Edits of SAE features, edits of a dense direction, methods that change weights, and retraining, on {settings.model}. Settings are "
        f"chosen on SELECT, tuned on TUNE, measured once on TEST, and compared at the same cost on text to keep. The measurements took "
        f"{result.seconds_of_cells / 60:.0f} minutes of one process, without the training of SAEs. {SUPPRESSION}"
    )
    if current_ranks().is_first:
        write_metrics(settings.out, result.to_json() | {"provenance": made})
        write_report(settings.out, "Unlearning, compared", lead, found.sections, made, found.summary)
    return result, found


def _hooks_of(training: TrainSettings) -> str:
    out = training.hook_name_out
    return training.hook_name if out is None else f"{training.hook_name} to {out}"


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


def _check_questions(settings: BenchmarkSettings) -> None:
    """Check before any work that all questions fit into a context, and if those to forget are attacked, with other text before them."""
    tasks = [task.task(settings.size().contexts_per_split) for task in settings.benchmark_tasks().values()]
    asked = [task for task in tasks if any(is_question_source(corpus.source) for corpus in task.corpora)]
    if not asked:
        return
    model = load_language_model(settings.model, device=settings.device)
    assert model.tokenizer is not None
    cutter = ContextCutter(model.tokenizer, settings.context_size, prepend_bos=settings.prepend_bos)
    for task in asked:
        task.check_questions(cutter)
        if settings.n_attacked_seeds and is_question_source(task.forget):
            n_filler_tokens(task.table(task.forget, "test", cutter), cutter)


def _check_hooks(settings: BenchmarkSettings) -> None:
    """Check before any work that every transcoder decodes a later hook than it reads."""
    pairs = {
        (training.hook_name, training.hook_name_out)
        for training in (settings.training(name, 0) for name in settings.saes)
        if training.hook_name_out is not None
    }
    if pairs:
        model = load_language_model(settings.model, device=settings.device)
        for pair in pairs:
            for name in pair:
                resolve_hook(model, name)
            check_order_in(model, pair)


def _train_all(settings: BenchmarkSettings) -> dict[str, TrainedSAE]:
    """Train every SAE that is not trained yet, and return what each reaches, by `architecture/seed`."""
    names = {f"{architecture}/{seed}": (architecture, seed) for seed in settings.seeds() for architecture in settings.saes}
    folder = settings.out / "training"
    found = run_trials_by_settings(
        folder,
        {name: training_settings(settings, *of) for name, of in names.items()},
        {name: as_json(partial(_train, settings.training(*of))) for name, of in names.items()},
        "training SAEs",
        n_workers=settings.n_workers,
    )
    trained = {name: TrainedSAE.from_json(content) for name, content in found.items()}
    for name, (architecture, seed) in names.items():
        weights = settings.training(architecture, seed).out / SAE_WEIGHTS_FILENAME
        if not weights.is_file() or digest_file(weights) != trained[name].weights_sha256:
            raise DataError(
                f"{weights}: expected the SAE that the results in {folder} describe, got {'another' if weights.is_file() else 'no'} file; "
                f"delete the folders {weights.parent} and {folder}, and run the same command again"
            )
    return trained


def _train(settings: TrainSettings) -> TrainedSAE:
    """Train an SAE and measure it on held-out text."""
    model = load_language_model(settings.model, device=settings.device)
    train_sae(settings, model, resume=True)
    assert model.tokenizer is not None
    cutter = ContextCutter(model.tokenizer, settings.context_size, prepend_bos=settings.prepend_bos)
    held_out = read_tokens(settings.dataset, "tune", cutter, 64)
    sae = load_sae(settings.out, settings.device)
    if isinstance(sae, Transcoder):
        metrics = evaluate_transcoder(sae, model, cutter, held_out)
    else:
        metrics = evaluate_fidelity(sae, model, cutter, held_out)
    return TrainedSAE(metrics=metrics, weights_sha256=digest_file(settings.out / SAE_WEIGHTS_FILENAME))


def _measure_all(settings: BenchmarkSettings, trained: Mapping[str, TrainedSAE]) -> dict[str, Cell]:
    """Compute every cell that is not computed yet, and return all by name."""
    planned = plan_cells(settings, trained)
    found = run_trials_by_settings(
        settings.out / "cells",
        {name: cell.settings for name, cell in planned.items()},
        {name: as_json(partial(_timed, cell.compute)) for name, cell in planned.items()},
        "unlearning",
        n_workers=settings.n_workers,
    )
    return {name: read_cell(name, content) for name, content in found.items()}


def _timed(compute: Callable[[], Cell]) -> Cell:
    watch = Stopwatch()
    return replace(compute(), seconds=watch.seconds)
