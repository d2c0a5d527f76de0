"""Every way to unlearn under one protocol, resumable, with a page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from mtsae_lens.data.contexts import ContextCutter, read_tokens
from mtsae_lens.data.facts import is_fact_source
from mtsae_lens.data.file_stamps import model_stamps, text_stamps
from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.data.vocabularies import check_reference
from mtsae_lens.errors import ConfigError, ModelError, nearest
from mtsae_lens.evaluation.fidelity import evaluate_fidelity
from mtsae_lens.experiments.benchmark.arms import QUICK, QUICK_LOSSES, SAES, TASKS, BenchmarkTask, Scale
from mtsae_lens.experiments.benchmark.attack_cell import RELEARNING
from mtsae_lens.experiments.benchmark.edit_cells import edit_cell
from mtsae_lens.experiments.benchmark.report import benchmark_part
from mtsae_lens.experiments.benchmark.setup import Subject
from mtsae_lens.experiments.benchmark.stability_cell import stability_cell
from mtsae_lens.experiments.benchmark.weights_cell import reference_cell, weights_cell
from mtsae_lens.interruption import GOES_ON, stopped_with
from mtsae_lens.opening import load_sae
from mtsae_lens.output_folders import in_output_folder
from mtsae_lens.records import Stopwatch, provenance, write_metrics
from mtsae_lens.reporting.page import Table, write_report
from mtsae_lens.settings import Settings
from mtsae_lens.splice.edits import SUPPRESSION
from mtsae_lens.training.recipe import TrainSettings, train_sae
from mtsae_lens.trials import Trial, run_trials
from mtsae_lens.unlearning.finetuning.sweeps import SWEEPS, Sweep
from mtsae_lens.unlearning.task import Corpus, check_corpus

BATCH_SIZE_TOKENS: int = TrainSettings.model_fields["batch_size_tokens"].default  # rounded down to whole contexts
LOSS_NAMES = tuple(SWEEPS["text"])


class BenchmarkSettings(Settings):
    """Settings of `mtsae unlearn-benchmark`."""

    out: Path = Path("runs/unlearn-benchmark")
    tasks: tuple[str, ...] = Field(tuple(TASKS), min_length=1)
    """Named tasks on the embedded model; `forget` replaces them by one task of its own."""
    forget: str | None = None
    near: tuple[str, ...] = ()
    retain: tuple[str, ...] = ()
    neutral: tuple[str, ...] = ()
    model: str = "embedded"
    """Loaded in float32, as are the references: most methods train its weights."""
    reference: str | None = "embedded-retrained"
    """A model that never saw what is to be forgotten; null where there is none."""
    dataset: str = "embedded+biographies"
    """Text that the SAEs are trained on."""
    hook_name: str = "blocks.3.hook_resid_post"
    saes: dict[str, dict[str, Any]] = Field(default_factory=lambda: dict(SAES), min_length=1)
    """Architectures and their own settings."""
    losses: tuple[str, ...] | None = None
    """Methods that change weights; all of them, or with `quick` three, if not given."""
    n_seeds: int = Field(5, gt=0)
    n_attacked_seeds: int = Field(1, ge=0)
    """Seeds of which one edit is measured in full and attacked."""
    quick: bool = False
    """One seed, short trainings, few settings: to see that it runs."""
    training_tokens: int | None = Field(None, gt=0)
    d_sae: int | None = Field(None, gt=0)
    contexts_per_split: int | None = Field(None, gt=0)
    context_size: int = Field(TrainSettings.model_fields["context_size"].default, gt=1)
    """Positions in a context; at most the model's own."""
    prepend_bos: bool = True
    n_workers: int = Field(default_factory=lambda: min(4, os.cpu_count() or 1), gt=0)
    """Processes; each trains or measures one thing at a time."""
    device: str = "cpu"

    @field_validator("tasks")
    @classmethod
    def _tasks_exist(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        for task in tasks:
            if task not in TASKS:
                raise ConfigError(f"no task {task!r}.{nearest(task, TASKS)}")
        return tasks

    @field_validator("losses")
    @classmethod
    def _losses_exist(cls, losses: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for loss in losses or ():
            if loss not in LOSS_NAMES:
                raise ConfigError(f"no method {loss!r} that changes weights.{nearest(loss, LOSS_NAMES)}")
        return losses

    @model_validator(mode="after")
    def _own_task_is_whole(self) -> BenchmarkSettings:
        if self.forget is None and (self.near or self.retain or self.neutral):
            raise ConfigError("near, retain and neutral belong to a task of your own; give --forget too")
        return self

    def scale(self) -> Scale:
        """How much work."""
        given = {
            name: value
            for name in ("training_tokens", "d_sae", "contexts_per_split")
            if (value := getattr(self, name)) is not None
        }
        return replace(QUICK if self.quick else Scale(), **given)

    def seeds(self) -> range:
        """Seeds of SAEs and of the order in which methods that change weights see text."""
        return range(1 if self.quick else self.n_seeds)

    def benchmark_tasks(self) -> dict[str, BenchmarkTask]:
        """The tasks by name."""
        if self.forget is None:
            return {name: TASKS[name] for name in self.tasks}
        corpora = [Corpus(self.forget, "forget")]
        corpora += [Corpus(source, "near") for source in self.near]
        corpora += [Corpus(source, "far") for source in self.retain]
        corpora += [Corpus(source, "neutral") for source in self.neutral]
        return {"own": BenchmarkTask("own", tuple(corpora), self.forget, (*self.near, *self.retain))}

    def training(self, architecture: str, seed: int) -> TrainSettings:
        """One SAE; all share text, width, schedule and number of tokens."""
        scale = self.scale()
        return TrainSettings(
            model=self.model,
            hook_name=self.hook_name,
            dataset=self.dataset,
            architecture=architecture,
            d_sae=scale.d_sae,
            training_tokens=scale.training_tokens,
            context_size=self.context_size,
            batch_size_tokens=max(1, BATCH_SIZE_TOKENS // self.context_size) * self.context_size,
            prepend_bos=self.prepend_bos,
            out=self.out / "saes" / f"{architecture}-{seed}",
            seed=seed,
            sae=self.saes[architecture],
            device=self.device,
        )


@stopped_with(GOES_ON, unless_told=True)
@in_output_folder
def run_benchmark(settings: BenchmarkSettings) -> tuple[dict[str, Any], list[Table]]:
    """Train the SAEs, run every method on every task, write `metrics.json` (by task: `at_cost`, `differences`, `goal`, `attacks`; `saes`,
    `provenance`) and `report.html`. Every training and every cell is kept as soon as it is done.

    Returns:
        The metrics, and the tables to print.
    """
    watch = Stopwatch()
    tasks = settings.benchmark_tasks()
    for benchmark_task in tasks.values():
        for corpus in benchmark_task.task(1).corpora:
            check_corpus(corpus.source)
    _check_reference(settings)
    scale = settings.scale()
    shared = {"model", "hook_name", "dataset", "saes"}
    shared |= {name for name in ("context_size", "prepend_bos") if getattr(settings, name) != _default(name)}
    trained_on = model_stamps(settings.model) | text_stamps(settings.dataset)
    trained = run_trials(
        settings.out / "training",
        {"scale": asdict(scale)} | settings.model_dump(mode="json", include=shared) | trained_on,
        {f"{a}/{seed}": partial(_train, settings.training(a, seed)) for seed in settings.seeds() for a in settings.saes},
        "training SAEs",
        n_workers=settings.n_workers,
    )
    cells = run_trials(
        settings.out / "cells",
        {"scale": asdict(scale), "attacked": settings.n_attacked_seeds}
        | settings.model_dump(
            mode="json",
            include={"reference", "forget", "near", "retain", *shared} | ({"neutral"} if settings.neutral else set()),
        )
        | {"methods": _methods(settings, tasks)}
        | trained_on
        | model_stamps(settings.reference)
        | text_stamps(*(corpus.source for task in tasks.values() for corpus in task.corpora)),
        {name: partial(_timed, cell) for name, cell in _cells(settings, tasks, scale).items()},
        "unlearning",
        n_workers=settings.n_workers,
    )
    part = benchmark_part(trained, cells, tasks, scale, list(settings.saes))
    metrics = part.metrics | {"provenance": provenance(0, watch.seconds, settings.model_dump(mode="json"))}
    write_metrics(settings.out, metrics)
    lead = (
        f"Edits of SAE features, a dense direction, methods that change weights and retraining on {settings.model}, chosen on SELECT, set on "
        f"TUNE, measured once on TEST, and compared where they cost the text to retain the same. The cells took "
        f"{part.metrics['seconds_of_cells'] / 60:.0f} minutes of one process, trainings not counted. {SUPPRESSION}"
    )
    write_report(settings.out, "Unlearning, compared", lead, part.sections, metrics["provenance"])
    return metrics, part.tables


def _default(name: str) -> Any:
    return BenchmarkSettings.model_fields[name].default


def _check_reference(settings: BenchmarkSettings) -> None:
    """Before any work: whether the reference's loss may be compared with the model's."""
    if settings.reference is None:
        return
    model, reference = (load_language_model(name, device=settings.device) for name in (settings.model, settings.reference))
    assert model.tokenizer is not None
    try:
        check_reference(
            reference, model, ContextCutter(model.tokenizer, settings.context_size, prepend_bos=settings.prepend_bos)
        )
    except ModelError as error:
        raise ModelError(f"{error} (--reference; where there is none, put 'reference: null' into a --config file)") from error


def _losses(settings: BenchmarkSettings) -> Sequence[str]:
    return (QUICK_LOSSES if settings.quick else LOSS_NAMES) if settings.losses is None else settings.losses


def _sweeps(task: BenchmarkTask, loss: str) -> tuple[Sweep, ...]:
    return SWEEPS["questions" if is_fact_source(task.forget_training) else "text"][loss]  # type: ignore[index]


def _methods(settings: BenchmarkSettings, tasks: Mapping[str, BenchmarkTask]) -> dict[str, Any]:
    """What results depend on and the settings do not say: roles, training text, sweeps of weights, the attacker."""
    return {
        name: {
            "corpora": {corpus.source: corpus.role for corpus in task.corpora},
            "trained on": [task.forget_training, *task.retain_training],
            "sweeps": {loss: repr(_sweeps(task, loss)) for loss in _losses(settings)},
            "relearning": repr(RELEARNING),
        }
        for name, task in tasks.items()
    }


def _timed(cell: Trial) -> dict[str, Any]:
    watch = Stopwatch()
    return {**cell(), "seconds": watch.seconds}


def _cells(settings: BenchmarkSettings, tasks: dict[str, BenchmarkTask], scale: Scale) -> dict[str, Trial]:
    """Seed by seed, so that whatever is done at any time is balanced."""
    cells: dict[str, Trial] = {}
    for seed in settings.seeds():
        attacked = seed < settings.n_attacked_seeds
        for name, benchmark_task in tasks.items():
            for architecture in settings.saes:
                subject = _subject(settings, benchmark_task, scale, architecture, seed)
                cells[f"{name}/{architecture}/{seed}"] = partial(
                    edit_cell, subject, scale, architecture, seed, attacked=attacked
                )
            subject = _subject(settings, benchmark_task, scale, next(iter(settings.saes)), seed)
            for loss in _losses(settings):
                runs = _sweeps(benchmark_task, loss)
                cells[f"{name}/{loss}/{seed}"] = partial(weights_cell, subject, scale, loss, runs, seed, attacked=attacked)
            if seed == 0 and settings.reference is not None:
                cells[f"{name}/reference"] = partial(reference_cell, subject, scale, attacked=settings.n_attacked_seeds > 0)
    for name, benchmark_task in tasks.items():
        for architecture in settings.saes:
            subjects = [_subject(settings, benchmark_task, scale, architecture, seed) for seed in settings.seeds()]
            cells[f"{name}/stability/{architecture}-{len(subjects)}"] = partial(stability_cell, subjects)
    return cells


def _subject(settings: BenchmarkSettings, task: BenchmarkTask, scale: Scale, architecture: str, seed: int) -> Subject:
    folder = settings.training(architecture, seed).out
    return Subject(task, scale.contexts_per_split, settings.model, settings.reference, folder, settings.device)


def _train(settings: TrainSettings) -> dict[str, Any]:
    """Train and measure on held-out text."""
    model = load_language_model(settings.model, device=settings.device)
    train_sae(settings, model, resume=True)
    assert model.tokenizer is not None
    cutter = ContextCutter(model.tokenizer, settings.context_size, prepend_bos=settings.prepend_bos)
    held_out = read_tokens(settings.dataset, "tune", cutter, 64)
    return evaluate_fidelity(load_sae(settings.out, settings.device), model, cutter, held_out)
