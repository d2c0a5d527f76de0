"""Records of the comparison: what each SAE reaches, and how the architectures compare."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from mtsae_lens.experiments.compare.search import Trained
from mtsae_lens.records import Interval, MaybeNaN, Record

Outcome = Literal["ahead", "behind", "within the spread", "no comparison"]

COMPARED = {
    "explained_variance_without_massive": "explained variance",
    "ce_loss_score": "ce_loss_score",
    "kl_div_score": "kl_div_score",
}
"""The metrics in which architectures are compared, and their names in sentences. Higher is better."""


@dataclass(frozen=True, kw_only=True)
class Measured(Record):
    """What one SAE reaches on TEST."""

    architecture: str
    hook_name: str
    d_sae: int
    n_parameters: int
    flops_per_token: int
    metrics: dict[str, float | None]
    """SAELens's metrics and those of `evaluate_fidelity`; None where one is not finite."""


@dataclass(frozen=True)
class Coded(Record):
    """What the features of one SAE cost on TEST (`mtsae_lens.evaluation.bits`)."""

    bits_per_token: MaybeNaN
    support_bits: MaybeNaN
    value_bits: MaybeNaN
    explained_variance_coded: MaybeNaN


_OF_THE_CODE = {field.name for field in fields(Coded)}


@dataclass(frozen=True, kw_only=True)
class Cell(Record):
    """One SAE of the grid: what it is, how it was trained and what it reaches."""

    name: str
    """Name of the arm, or the folder of an SAE that was given."""
    role: str
    hook_name: str
    target_l0: int | None
    """The wanted L0; None for an SAE that was given."""
    seed: int | None
    trained: Trained | None
    n_training_tokens: int | None
    measured: Measured
    coded: Coded

    def value(self, metric: str) -> float | None:
        """Return a metric on TEST; None where it is not finite.

        Args:
            metric: name of the metric, or a field of `Coded`.
        """
        if metric in _OF_THE_CODE:
            value = getattr(self.coded, metric)
            return value if math.isfinite(value) else None
        return self.measured.metrics.get(metric)

    @property
    def training_flops(self) -> float | None:
        """Floating-point operations of the training; None for an SAE that was given."""
        return None if self.n_training_tokens is None else float(self.measured.flops_per_token * self.n_training_tokens)


@dataclass(frozen=True, kw_only=True)
class Verdict(Record):
    """One of our architectures beside the best one of SAELens, at one hook, L0 and metric."""

    hook_name: str
    target_l0: int
    metric: str
    name: str
    best: str | None
    """The architecture of SAELens with the highest mean, out of those whose L0 is not above the wanted one; None if there is none."""
    difference: Interval | None
    """Difference seed by seed: mean, smallest and largest."""
    ours: Interval | None
    theirs: Interval | None
    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class Searched(Record):
    """The search of one arm at one hook and L0, on TUNE."""

    hook_name: str
    name: str
    target_l0: int
    trials: tuple[Trained, ...]
    """The trainings of the search, of every learning rate."""
    finals: tuple[Trained, ...]
    """The best learning rates at full length, the chosen one first."""


@dataclass(frozen=True, kw_only=True)
class CompareResult(Record):
    """What `mtsae compare` measured."""

    cells: tuple[Cell, ...]
    """The SAEs of the grid, and those that were given."""
    verdicts: tuple[Verdict, ...]
    search: tuple[Searched, ...]
    diverged: tuple[str, ...] = ()
    """Trainings whose loss became infinite or NaN. They have no cell."""


def compute_range(values: Sequence[float | None]) -> Interval | None:
    """Return mean, smallest and largest of the values over seeds; None if one is missing.

    Args:
        values: one value per seed.
    """
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return Interval(sum(known) / len(known), min(known), max(known))


def ablation_cost(cell: Cell) -> float | None:
    """Return by how many nats per token the loss rises if the activations at the hook are set to zero; None where it is not finite.

    `ce_loss_score` and `kl_div_score` are shares of what this ablation does.

    Args:
        cell: an SAE at the hook.
    """
    clean, ablated = cell.value("ce_loss_without_sae"), cell.value("ce_loss_with_ablation")
    return None if clean is None or ablated is None else ablated - clean


def group_cells(cells: Sequence[Cell]) -> dict[tuple[str, int | None, str], list[Cell]]:
    """Group cells that differ in their seed alone, by hook, wanted L0 and name.

    Args:
        cells: the cells.
    """
    groups: dict[tuple[str, int | None, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.hook_name, cell.target_l0, cell.name), []).append(cell)
    return groups


def judge(cells: Sequence[Cell], margin: float) -> list[Verdict]:
    """Compare each of our architectures with the best one of SAELens, at every hook and L0 and in each metric of `COMPARED`.

    An architecture is ahead if its worst seed is above the best seed of the other one.

    Args:
        cells: the cells of the grid.
        margin: how far above the wanted L0 an SAE may be, relative to it. SAEs beyond it are not compared.

    Returns:
        One verdict for each of our architectures, at each hook and L0, in each metric.
    """
    groups, verdicts = group_cells(cells), []
    for (hook_name, target, _), own in groups.items():
        if own[0].role != "ours" or target is None:
            continue
        rivals = {
            rival: theirs
            for (hook, l0, rival), theirs in groups.items()
            if (hook, l0) == (hook_name, target) and theirs[0].role == "saelens" and _is_sparse(theirs, target, margin)
        }
        for metric in COMPARED:
            verdicts.append(_judge_one(own, rivals, metric, target, margin))
    return verdicts


def _is_sparse(cells: Sequence[Cell], target: float, margin: float) -> bool:
    l0 = compute_range([cell.value("l0") for cell in cells])
    return l0 is not None and l0.mean <= target * (1 + margin)


def _judge_one(own: Sequence[Cell], rivals: Mapping[str, Sequence[Cell]], metric: str, target: int, margin: float) -> Verdict:
    def values(cells: Sequence[Cell]) -> Interval | None:
        return compute_range([cell.value(metric) for cell in cells])

    ours, theirs = values(own), {name: found for name, cells in rivals.items() if (found := values(cells)) is not None}
    best = max(theirs, key=lambda name: theirs[name].mean, default=None)
    difference: Interval | None = None
    outcome: Outcome = "no comparison"
    if ours is not None and best is not None and _is_sparse(own, target, margin):
        by_seed = {cell.seed: cell.value(metric) for cell in rivals[best]}
        pairs = [(cell.value(metric), by_seed[cell.seed]) for cell in own if cell.seed in by_seed]
        difference = compute_range([a - b for a, b in pairs if a is not None and b is not None])
        outcome = "ahead" if ours.low > theirs[best].high else "within the spread"
        outcome = "behind" if ours.high < theirs[best].low else outcome
    return Verdict(
        hook_name=own[0].hook_name,
        target_l0=target,
        metric=metric,
        name=own[0].name,
        best=best,
        difference=difference,
        ours=ours,
        theirs=None if best is None else theirs[best],
        outcome=outcome,
    )
