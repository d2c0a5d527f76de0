"""One unlearning experiment from choice to verdict: features and gate from SELECT, size and strength from TUNE, numbers from TEST.

TEST text is read once, by `measure_on_test`, after everything is fixed. An edit at a hook is suppression, not deletion: without the
hook the model is what it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from sae_lens import HookedSAETransformer

from mtsae_lens.data.contexts import TokenTable
from mtsae_lens.errors import DataError
from mtsae_lens.progress import phase, track
from mtsae_lens.sae.collapse import firing_counts
from mtsae_lens.splice.edits import Edit, FeatureEdit
from mtsae_lens.splice.gates import AlwaysOpen
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.candidates import FeatureCandidate, Grid, feature_candidates, fit_gates, gather_evidence, rankings
from mtsae_lens.unlearning.changes import Change, document_rows, effect_row, further_measures, pooled
from mtsae_lens.unlearning.measures.effects import as_logits, max_identity_error, measure_edits, measure_model
from mtsae_lens.unlearning.selection.ranking import matched_random
from mtsae_lens.unlearning.selection.statistics import firing_statistics
from mtsae_lens.unlearning.sweep import Outcome, most_forgetting, nearest_to, sweep, within_budgets
from mtsae_lens.unlearning.task import Task

MAX_IDENTITY_ERROR = 1e-4  # in logits; what float32 rounding leaves of h + decode(e) - decode(e)


@dataclass(frozen=True)
class UnlearningSettings:
    """What is swept on TUNE, and the budgets that decide there."""

    grid: Grid = field(default_factory=Grid)
    far_budget: float = 0.05
    """Nats per token that no far-retain corpus may lose on TUNE; half of what is allowed on TEST."""
    near_budget: float = 0.1
    """The same for near-retain corpora."""
    min_ratio: float = 5.0
    """Of the score `frequency_ratio`: a feature fires so many times as often on the forget text as on each far-retain text."""
    n_random_draws: int = 20
    seed: int = 0


@dataclass(frozen=True)
class Chosen:
    """The outcome of SELECT and TUNE."""

    candidate: FeatureCandidate
    sweep: tuple[Outcome, ...]

    @property
    def edit(self) -> Edit:
        """What was chosen."""
        return self.candidate.edit

    @property
    def setting(self) -> dict[str, Any]:
        """How it was made."""
        return self.candidate.setting


def choose(lm: HookedLM, task: Task, settings: UnlearningSettings, reference: HookedSAETransformer | None = None) -> Chosen:
    """Select features and fit the gate on SELECT; set number, multiplier and the gate's threshold on TUNE.

    Among the settings that stay within both budgets: with a reference model that never saw the forget text, the one whose
    forget loss is nearest to the reference's (a higher one is damage, not forgetting); without one, the highest that is no worse than
    guessing every token alike.

    Raises:
        DataError: no feature prefers the forget text, or no setting stays within the budgets.
    """
    gates = fit_gates(lm, task, settings.grid.false_positive_rates)
    evidence = gather_evidence(lm, task)
    if None not in settings.grid.false_positive_rates:
        evidence = evidence.without_near()  # a gate spares near text better than a choice of features can
    ranked = rankings(evidence, settings.grid, min_ratio=settings.min_ratio)
    if not ranked:
        collapse = firing_counts(evidence.forget_statistics.rate).warning
        remedy = f": {collapse}" if collapse else "; train a wider SAE, lower --min-ratio, or choose by another score"
        raise DataError(f"no feature prefers the forget text by the scores {', '.join(settings.grid.scores)}{remedy}")
    candidates = feature_candidates(ranked, settings.grid, gates, evidence)
    outcomes = sweep(lm, task, candidates)
    place = _decide(lm, task, settings, outcomes, reference)
    return Chosen(candidates[place], tuple(outcomes))


def _decide(
    lm: HookedLM,
    task: Task,
    settings: UnlearningSettings,
    outcomes: Sequence[Outcome],
    reference: HookedSAETransformer | None,
) -> int:
    within = within_budgets(outcomes, settings.near_budget, settings.far_budget)
    if not within:
        best = min(outcomes, key=lambda o: max(o.far - settings.far_budget, o.near - settings.near_budget))
        raise DataError(
            f"no setting stays within the budgets on TUNE (nearest: far {best.far:.3f}, near {best.near:.3f} nats); raise "
            "--far-budget or --near-budget, or give text that is farther away"
        )
    if reference is not None:
        goal = measure_model(
            as_logits(reference, lm.cutter), lm.model, lm.cutter, task.table(task.forget, "tune", lm.cutter), lm.batch_size
        )
        place = nearest_to(outcomes, within, goal.nll_delta)
    else:
        place = most_forgetting(outcomes, within, math.log(lm.model.cfg.d_vocab))
    return min(within, key=lambda p: outcomes[p].forget_nll) if place is None else place


def checked_identity(lm: HookedLM, tables: Mapping[str, TokenTable]) -> float:
    """The largest change of a logit by the splice without an edit.

    Raises:
        RuntimeError: it is not the identity, so no number from it could be trusted.
    """
    checked = track(tables.items(), "checking the splice without an edit", "text", len(tables))
    errors = {source: max_identity_error(lm, table) for source, table in checked}
    worst = max(errors, key=lambda source: (math.isnan(errors[source]), errors[source]))
    if not errors[worst] <= MAX_IDENTITY_ERROR:  # NaN is no identity either
        raise RuntimeError(f"the splice without an edit changes the logits by {errors[worst]:.3g} on {worst}")
    return errors[worst]


def measure_on_test(
    lm: HookedLM,
    task: Task,
    settings: UnlearningSettings,
    chosen: Chosen,
    reference: HookedSAETransformer | None = None,
) -> dict[str, Any]:
    """The whole ladder on TEST text, once: no edit, zero, clamp, gated clamp (the edit), matched random features, the reference."""
    candidate = chosen.candidate
    ladder: dict[str, Edit] = {
        "zero": FeatureEdit(candidate.features),
        "clamp": replace(candidate.edit, gate=AlwaysOpen()),  # type: ignore[type-var]  # edits are frozen dataclasses
        "gated_clamp": candidate.edit,
    }
    draws = random_twins(lm, task, candidate, settings.n_random_draws, settings.seed)
    tables = task.tables("test", lm.cutter)
    result: dict[str, Any] = {"corpora": {}, "random_control": {}, "ladder": {name: {} for name in ladder}, "documents": {}}
    result["identity_error"] = checked_identity(lm, tables)
    edits = [*ladder.values(), *draws]
    n_runs = len(edits) * sum(lm.n_batches(table) for table in tables.values())
    with phase(f"measuring {len(edits)} edits on TEST", "run", n_runs):
        effects_by_source = {source: measure_edits(lm, table, edits) for source, table in tables.items()}
    for source, table in track(tables.items(), "resampling documents", "text", len(tables)):
        effects = effects_by_source[source]
        rows = [effect_row(effect, settings.seed) for effect in effects[: len(ladder)]]
        for name, row in zip(ladder, rows, strict=True):
            result["ladder"][name][source] = row
        result["corpora"][source] = rows[-1] | {"role": task.role(source)}
        if reference is not None:
            of_reference = measure_model(as_logits(reference, lm.cutter), lm.model, lm.cutter, table, lm.batch_size)
            result["corpora"][source]["nll_reference"] = of_reference.mean(of_reference.nll_edited)
        result["random_control"][source] = pooled(effects[len(ladder) :])
        result["documents"][source] = document_rows(effects[len(ladder) - 1])
    return result | further_measures(lm, task, Change(candidate.edit), reference, settings.seed)


def random_twins(lm: HookedLM, task: Task, candidate: FeatureCandidate, n_draws: int, seed: int) -> list[Edit]:
    """The same edit of features that fire as often and as strongly on the forget text but were not chosen."""
    generator = torch.Generator().manual_seed(seed)
    statistics = firing_statistics(lm, task.table(task.forget, "select", lm.cutter))
    return [candidate.of(matched_random(statistics, candidate.features, generator)) for _ in range(n_draws)]
