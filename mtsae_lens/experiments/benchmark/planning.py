"""Plan the work of the benchmark: the SAEs and the cells, and what the result of each depends on.

A cell depends on less than the settings of the run: adding a loss, an SAE, a task or a seed leaves all other cells as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from mtsae_lens.data.file_stamps import model_stamps, text_stamps
from mtsae_lens.data.questions import is_question_source
from mtsae_lens.experiments.benchmark.arms import OURS, QUICK_LOSSES, BenchmarkTask
from mtsae_lens.experiments.benchmark.attack_cell import RELEARNING
from mtsae_lens.experiments.benchmark.cells import Cell
from mtsae_lens.experiments.benchmark.edit_cells import edit_cell
from mtsae_lens.experiments.benchmark.results import TrainedSAE
from mtsae_lens.experiments.benchmark.settings import BenchmarkSettings
from mtsae_lens.experiments.benchmark.setup import BenchmarkSetup
from mtsae_lens.experiments.benchmark.stability_cell import stability_cell
from mtsae_lens.experiments.benchmark.weights_cell import reference_cell, weights_cell
from mtsae_lens.unlearning.finetuning.losses import OfAllWeights
from mtsae_lens.unlearning.finetuning.rep_select import RepSelect
from mtsae_lens.unlearning.finetuning.sweeps import LOSSES, Sweep, sweeps_of
from mtsae_lens.unlearning.gate_kinds import GateChoice
from mtsae_lens.unlearning.task import ALL_QUESTIONS, Role

_OF_AN_SAE = {
    "model",
    "hook_name",
    "dataset",
    "architecture",
    "sae",
    "d_sae",
    "training_tokens",
    "context_size",
    "prepend_bos",
    "batch_size_tokens",
}
"""Settings of a training that the benchmark gives, without those that name folders and devices."""

_MEASURED: tuple[Role, ...] = ("forget", "near", "far", "neutral")
_READ_TO_CHOOSE: tuple[Role, ...] = ("forget", "near", "far")

Saes = Mapping[str, TrainedSAE]
"""The trained SAEs by `architecture/seed`."""


@dataclass(frozen=True, eq=False)
class PlannedCell:
    """One cell before it is computed."""

    compute: Callable[[], Cell]
    settings: dict[str, Any]
    """What the result depends on, as JSON."""


def training_settings(settings: BenchmarkSettings, name: str, seed: int) -> dict[str, Any]:
    """Return what an SAE depends on, as JSON.

    Args:
        settings: settings of the run.
        name: name of the SAE in `settings.saes`.
        seed: seed of the SAE.
    """
    training = settings.training(name, seed)
    of_sae = training.model_dump(mode="json", include=_OF_AN_SAE)
    given = {"frozen": training.frozen, "hook_name_out": training.hook_name_out}
    of_sae |= {name: value for name, value in given.items() if value is not None}  # so that earlier results stay valid
    return of_sae | model_stamps(settings.model) | text_stamps(settings.dataset)


def plan_cells(settings: BenchmarkSettings, saes: Saes) -> dict[str, PlannedCell]:
    """Plan the cells, seed by seed, so that a stopped run has results of all methods.

    Args:
        settings: settings of the run.
        saes: the trained SAEs by `architecture/seed`.

    Returns:
        Cells by name, such as `domain/mtsae/0`, `domain/npo/0`, `domain/reference` and `domain/stability/mtsae-5`.
    """
    cells: dict[str, PlannedCell] = {}
    tasks = settings.benchmark_tasks()
    for seed in settings.seeds():
        for name, task in tasks.items():
            for architecture in settings.saes:
                cells[f"{name}/{architecture}/{seed}"] = _plan_edits(settings, task, architecture, seed, saes)
            for loss in _losses(settings):
                cells[f"{name}/{loss}/{seed}"] = _plan_weights(settings, task, loss, seed)
            if seed == 0 and settings.reference is not None:
                cells[f"{name}/reference"] = _plan_reference(settings, task)
    for name, task in tasks.items():
        for architecture in settings.saes:
            cells[f"{name}/stability/{architecture}-{len(settings.seeds())}"] = _plan_stability(
                settings, task, architecture, saes
            )
    return cells


def _plan_edits(settings: BenchmarkSettings, task: BenchmarkTask, architecture: str, seed: int, saes: Saes) -> PlannedCell:
    size, attacked = settings.size(), seed < settings.n_attacked_seeds
    compute = partial(edit_cell, _setup(settings, task, architecture, seed), size, architecture, seed, attacked=attacked)
    depends_on = _of_method(settings, task) | _of_saes(settings, architecture, [seed], saes)
    depends_on |= {"gated": asdict(task.gated(size)), "ungated": asdict(size.ungated), "n_random_draws": size.n_random_draws}
    if task.gate != GateChoice():  # so that earlier results stay valid
        depends_on |= {"gate": asdict(task.gate)}
    if attacked:
        depends_on |= _of_attacks(settings, task)
    if attacked and architecture == OURS:  # low-rank weights imitate its edit
        depends_on |= _of_training(task) | {"low_rank": asdict(size.low_rank)}
    return PlannedCell(compute, depends_on)


def _plan_weights(settings: BenchmarkSettings, task: BenchmarkTask, loss: str, seed: int) -> PlannedCell:
    runs, attacked = _sweeps(task, loss, settings.first_trained_layer), seed < settings.n_attacked_seeds
    setup = _setup(settings, task, _names_the_hook(settings), seed)
    compute = partial(weights_cell, setup, settings.size(), loss, runs, seed, attacked=attacked)
    depends_on = _of_method(settings, task) | _of_training(task) | {"sweeps": repr(runs)} | _of_hooks(settings)
    return PlannedCell(compute, depends_on | (_of_attacks(settings, task) if attacked else {}))


def _plan_reference(settings: BenchmarkSettings, task: BenchmarkTask) -> PlannedCell:
    setup, attacked = _setup(settings, task, _names_the_hook(settings), 0), settings.n_attacked_seeds > 0
    compute = partial(reference_cell, setup, settings.size(), attacked=attacked)
    depends_on = _of_method(settings, task) | _of_hooks(settings)
    return PlannedCell(compute, depends_on | (_of_attacks(settings, task) if attacked else {}))


def _names_the_hook(settings: BenchmarkSettings) -> str:
    """Return an SAE that is not run, and names the hook at which other weights are attacked: one without hooks of its own if there is one."""
    own = {"hook_name", "hook_name_out"}
    return next((name for name, given in settings.saes.items() if not own & given.keys()), next(iter(settings.saes)))


def _of_hooks(settings: BenchmarkSettings) -> dict[str, Any]:
    """Return the hooks at which other weights are attacked, if they are not the benchmark's own."""
    training = settings.training(_names_the_hook(settings), 0)
    hooks = [training.hook_name, training.hook_name_out]
    return {} if hooks == [settings.hook_name, None] else {"hooks": hooks}


def _plan_stability(settings: BenchmarkSettings, task: BenchmarkTask, architecture: str, saes: Saes) -> PlannedCell:
    setups = [_setup(settings, task, architecture, seed) for seed in settings.seeds()]
    depends_on = _of_text(settings, task, _READ_TO_CHOOSE) | _of_saes(settings, architecture, settings.seeds(), saes)
    return PlannedCell(partial(stability_cell, setups), depends_on)


def _setup(settings: BenchmarkSettings, task: BenchmarkTask, architecture: str, seed: int) -> BenchmarkSetup:
    return BenchmarkSetup(
        task,
        settings.size().contexts_per_split,
        settings.model,
        settings.reference,
        settings.training(architecture, seed).out,
        settings.device,
        settings.first_trained_layer,
        settings.size().max_select_questions,
    )


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


def _of_text(settings: BenchmarkSettings, task: BenchmarkTask, roles: Sequence[Role]) -> dict[str, Any]:
    """Return what reading the corpora of some roles with the language model depends on."""
    corpora = {corpus.source: corpus.role for corpus in task.corpora if corpus.role in roles}
    shared = settings.model_dump(mode="json", include={"model", "hook_name", "context_size", "prepend_bos"})
    size = settings.size()
    shared |= {"contexts_per_split": size.contexts_per_split, "corpora": corpora}
    if (
        any(map(is_question_source, corpora)) and size.max_select_questions != ALL_QUESTIONS
    ):  # so that earlier results stay valid
        shared |= {"max_select_questions": size.max_select_questions}
    return shared | model_stamps(settings.model) | text_stamps(*corpora)


def _of_method(settings: BenchmarkSettings, task: BenchmarkTask) -> dict[str, Any]:
    reference = {"reference": settings.reference} | model_stamps(settings.reference)
    return _of_text(settings, task, _MEASURED) | reference


def _of_saes(settings: BenchmarkSettings, architecture: str, seeds: Sequence[int], saes: Saes) -> dict[str, Any]:
    weights = {str(seed): saes[f"{architecture}/{seed}"].weights_sha256 for seed in seeds}
    return {"architecture": architecture, "sae": settings.saes[architecture], "weights of the SAE": weights}


def _of_training(task: BenchmarkTask) -> dict[str, Any]:
    """Return what training toward forgetting depends on."""
    trained_on = [task.forget_training, *task.retain_training]
    return {"trained on": trained_on} | text_stamps(*trained_on)


def _of_attacks(settings: BenchmarkSettings, task: BenchmarkTask) -> dict[str, Any]:
    size = settings.size()
    attacks = {
        "relearning": repr(RELEARNING),
        "relearned_documents": size.relearned_documents,
        "n_relearning_steps": size.n_relearning_steps,
        "first_trained_layer": settings.first_trained_layer,
        "recovery": asdict(size.recovery),
        "unseen": task.unseen,
    }
    return {"attacks": attacks} | (text_stamps(task.unseen) if task.unseen else {})
