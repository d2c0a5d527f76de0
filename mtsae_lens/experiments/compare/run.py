"""Train and measure the grid of architectures, L0 and seeds, resumable, with a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from mtsae_lens.commands.cache import run_cache
from mtsae_lens.commands.cache_settings import CacheSettings
from mtsae_lens.data.activation_cache import ActivationCache
from mtsae_lens.data.documents import check_source
from mtsae_lens.errors import DataError
from mtsae_lens.experiments.compare.arms import UNTRAINED_LR
from mtsae_lens.experiments.compare.cells import code_cell, measure_cell
from mtsae_lens.experiments.compare.given import check_given, shortest_names
from mtsae_lens.experiments.compare.grid import Grid, Key, trial_name
from mtsae_lens.experiments.compare.report import CompareReport, report_comparison
from mtsae_lens.experiments.compare.results import Cell, Coded, CompareResult, Measured, Searched, judge
from mtsae_lens.experiments.compare.search import Trained, closest, next_coefficient, rank_lrs
from mtsae_lens.experiments.compare.settings import CompareSettings
from mtsae_lens.experiments.parts import as_json
from mtsae_lens.interruption import GOES_ON, interrupt_on_signal
from mtsae_lens.opening import load_sae
from mtsae_lens.output_folders import in_output_folder
from mtsae_lens.ranks import current_ranks
from mtsae_lens.records import Stopwatch, provenance, write_metrics
from mtsae_lens.reporting.page import write_report
from mtsae_lens.splice.edit_files import weights_digest
from mtsae_lens.training.recipe import check_settings
from mtsae_lens.trials import run_trials


@interrupt_on_signal(GOES_ON, keep_inner_message=True)
@in_output_folder
def run_compare(settings: CompareSettings) -> tuple[CompareResult, CompareReport]:
    """Train and measure the grid, and write `metrics.json` (`cells`, `search`, `verdicts`, `provenance`) and `report.html`.

    Learning rates and sparsity coefficients are chosen on TUNE at seed 0, and every SAE is measured once on TEST. Every training and every
    measurement is saved as soon as it is done; the same call resumes the work. Several ranks (`mtsae_lens.ranks`) share the trainings and the
    measurements, and the first one writes.

    Args:
        settings: what to run.

    Returns:
        What was measured, and its report.

    Raises:
        ConfigError: settings that no run can follow, an SAE that does not fit the others, or a folder with results of other settings.
        DataError: a split of the text is empty, or an architecture diverges at every learning rate.
        TrainingInterrupted: a signal arrived; the same call resumes the work.
    """
    watch = Stopwatch()
    given = {folder: load_sae(folder, settings.device) for folder in settings.saes}
    grid = _open_grid(settings)
    for folder, sae in given.items():
        check_given(folder, sae, grid)
    grid.text.check_splits()
    for key in grid.places():  # checks the settings of all before the first is trained
        check_settings(grid.training(key, settings.size().lr[0], grid.arm(key).first_coefficient, 0, search=False))
    searched = _search(grid)
    finals = _final(grid, searched)
    trained, diverged = _train(grid, _choose(grid, finals))
    cells = _measure(grid, trained, {folder: weights_digest(sae) for folder, sae in given.items()})
    search = [
        Searched(hook_name=key[0], name=key[1], target_l0=key[2], trials=tuple(chain(*by_lr)), finals=tuple(finals[key]))
        for key, by_lr in searched.items()
    ]
    verdicts = judge(cells, settings.l0_margin)
    result = CompareResult(cells=tuple(cells), verdicts=tuple(verdicts), search=tuple(search), diverged=tuple(diverged))
    report = report_comparison(result, settings, grid.cache.contents.model_name)
    made = provenance(grid.cache.contents.seed, watch.seconds, settings.model_dump(mode="json"))
    if current_ranks().is_first:
        write_metrics(settings.out, result.to_json() | {"provenance": made})
        write_report(settings.out, "Architectures compared", report.lead, report.sections, made, report.summary)
    return result, report


def _open_grid(settings: CompareSettings) -> Grid:
    """Open the cache, or write it."""
    folder = settings.cache
    if folder is None:
        check_source(settings.dataset)
        folder = settings.out / "cache"
        run_cache(
            CacheSettings(
                **settings.given_text(),
                hook_name=settings.hook_name,
                n_tokens=settings.size().training_tokens,
                out=folder,
                device=settings.device,
            )
        )
    grid = Grid(settings, ActivationCache.open(folder), folder)
    for hook_name in grid.hook_names:
        grid.cache.check_hook(hook_name)
    return grid


def _search(grid: Grid) -> dict[Key, list[list[Trained]]]:
    """Try every learning rate at seed 0 and measure on TUNE: with short trainings where L0 is a setting, and otherwise with several sparsity
    coefficients at full length.

    Returns:
        By hook, arm and L0: the trials of each learning rate. Arms that take the learning rate of another one are not searched.
    """
    settings, arms = grid.settings, grid.settings.arms()
    keys = [key for key in grid.places() if grid.arm(key).frozen != "all" and grid.arm(key).tuned_as not in arms]
    tried: dict[Key, list[list[Trained]]] = {key: [[] for _ in settings.size().lr] for key in keys}
    record = grid.record() | {"search_tokens": settings.size().search_tokens}
    number = 0
    while due := {key: trials for key, by_lr in tried.items() if (trials := _due(grid, key, by_lr))}:
        number += 1
        names = {trial_name(key, lr, c, 0): (key, place, lr, c) for key, trials in due.items() for place, lr, c in trials}
        jobs = {name: grid.trial(key, lr, c, 0, search=True) for name, (key, _, lr, c) in names.items()}
        title = f"Search on TUNE, round {number}"
        results = run_trials(settings.out / "search", record, jobs, title, n_workers=settings.n_workers)
        for name, (key, place, _, _) in names.items():
            tried[key][place].append(Trained.from_json(results[name]))
    return tried


def _due(grid: Grid, key: Key, by_lr: Sequence[Sequence[Trained]]) -> list[tuple[int, float, float | None]]:
    """Return what to try next of one arm: number of the learning rate, learning rate, and sparsity coefficient.

    All learning rates are tried at once where L0 is a setting. Otherwise they follow each other, and each begins with the best coefficient of
    the one before.
    """
    rates, start = grid.settings.size().lr, grid.arm(key).first_coefficient
    if start is None:
        return [(place, lr, None) for place, (lr, tried) in enumerate(zip(rates, by_lr, strict=True)) if not tried]
    for place, (lr, tried) in enumerate(zip(rates, by_lr, strict=True)):
        if len(tried) < grid.settings.n_l0_trials:
            found = next_coefficient(tried, key[2], grid.settings.l0_tolerance, start)
            if found is not None:
                return [(place, lr, found)]
        start = closest(tried, key[2]).coefficient or start
    return []


def _final(grid: Grid, searched: Mapping[Key, Sequence[Sequence[Trained]]]) -> dict[Key, list[Trained]]:
    """Compare the best learning rates of the short trainings again at full length, because a short training favors high ones.

    Returns:
        By hook, arm and L0: the trainings at full length, the best one on TUNE first.
    """
    settings, finals = grid.settings, {}
    names: dict[str, tuple[Key, float]] = {}
    for key, by_lr in searched.items():
        finals[key] = rank_lrs(by_lr, key[2], settings.l0_tolerance)
        if grid.arm(key).first_coefficient is None:  # otherwise the search was at full length
            finals[key] = finals[key][: settings.n_finalists]
            names |= {trial_name(key, t.lr, None, 0): (key, t.lr) for t in finals[key]}
    jobs = {name: grid.trial(key, lr, None, 0, search=False) for name, (key, lr) in names.items()}
    if not jobs:
        return finals
    results = run_trials(
        settings.out / "trained", grid.record(), jobs, "Learning rates at full length", n_workers=settings.n_workers
    )
    for key, ranked in finals.items():
        if grid.arm(key).first_coefficient is None:
            again = [[Trained.from_json(results[trial_name(key, t.lr, None, 0)])] for t in ranked]
            finals[key] = rank_lrs(again, key[2], settings.l0_tolerance)
    return finals


def _choose(grid: Grid, finals: Mapping[Key, Sequence[Trained]]) -> dict[Key, tuple[float, float | None]]:
    """Choose learning rate and sparsity coefficient of every arm; a control has those of the arm that it is a control for."""
    chosen: dict[Key, tuple[float, float | None]] = {}
    for key in grid.places():
        (hook_name, _, l0), arm = key, grid.arm(key)
        if arm.frozen == "all":
            chosen[key] = (UNTRAINED_LR, None)
            continue
        best = finals[key if key in finals or arm.tuned_as is None else (hook_name, arm.tuned_as, l0)][0]
        if best.failed:
            raise DataError(
                f"{key[1]} at {hook_name}, L0 {l0}: expected a learning rate at which training does not diverge, got {best.lr:g} as the best "
                f"({best.failed}); add a lower --lr"
            )
        chosen[key] = (best.lr, best.coefficient)
    return chosen


def _train(
    grid: Grid, chosen: Mapping[Key, tuple[float, float | None]]
) -> tuple[dict[tuple[Key, int], tuple[Path, Trained]], list[str]]:
    """Train every SAE at full length, seed after seed, so that a stopped run has complete seeds.

    Returns:
        By hook, arm, L0 and seed, the folder of the SAE and what it reaches on TUNE; and the names of the trainings that diverged.
    """
    settings, size = grid.settings, grid.settings.size()
    names = {
        trial_name(key, *of, seed): (key, seed)
        for seed in range(size.n_seeds)
        for key, of in chosen.items()
        if grid.arm(key).is_compared or seed < settings.n_control_seeds
    }
    jobs = {name: grid.trial(key, *chosen[key], seed, search=False) for name, (key, seed) in names.items()}
    results = run_trials(settings.out / "trained", grid.record(), jobs, "Training", n_workers=settings.n_workers)
    trained = {name: Trained.from_json(results[name]) for name in names}
    kept = {
        (key, seed): (grid.training(key, *chosen[key], seed, search=False).out, trained[name])
        for name, (key, seed) in names.items()
        if not trained[name].failed
    }
    return kept, [name for name, of in trained.items() if of.failed]


def _measure(grid: Grid, trained: Mapping[tuple[Key, int], tuple[Path, Trained]], given: Mapping[Path, str]) -> list[Cell]:
    """Measure every SAE once on TEST. SAEs that were given come with the digest of their weights."""
    settings, n_contexts = grid.settings, grid.settings.size().n_eval_contexts
    names = {trial_name(key, of.lr, of.coefficient, seed): (key, seed) for (key, seed), (_, of) in trained.items()}
    given_names = {f"given/{folder.name}/{digest[:12]}": folder for folder, digest in given.items()}
    shown = dict(zip(given, shortest_names(list(given)), strict=True))
    folders = {name: trained[place][0] for name, place in names.items()} | given_names
    record, n_workers = grid.record() | {"n_eval_contexts": n_contexts}, settings.n_workers
    jobs = {name: as_json(partial(measure_cell, folder, grid.text, n_contexts)) for name, folder in folders.items()}
    measured = run_trials(settings.out / "measured", record, jobs, "Measuring on TEST", n_workers=n_workers)
    jobs = {
        name: as_json(partial(code_cell, folder, grid.text, n_contexts, settings.value_bits))
        for name, folder in folders.items()
    }
    record |= {"value_bits": settings.value_bits}
    coded = run_trials(settings.out / "coded", record, jobs, "Bits per token on TEST", n_workers=n_workers)
    cells = []
    for name, folder in folders.items():
        found = Measured.from_json(measured[name])
        about: dict[str, Any] = {"name": shown.get(folder), "role": "given", "target_l0": None, "seed": None, "trained": None}
        n_tokens = None
        if name in names:
            key, seed = names[name]
            arm, n_tokens = grid.arm(key), grid.training_tokens(grid.arm(key), search=False)
            about = {"name": key[1], "role": arm.role, "target_l0": key[2], "seed": seed, "trained": trained[key, seed][1]}
        cells.append(
            Cell(
                **about,
                hook_name=found.hook_name,
                n_training_tokens=n_tokens,
                measured=found,
                coded=Coded.from_json(coded[name]),
            )
        )
    return cells
