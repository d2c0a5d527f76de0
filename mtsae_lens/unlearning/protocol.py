"""Run one unlearning experiment: features and gate are chosen on SELECT, number and strength on TUNE, and the results come from TEST.

TEST text is read once, by `measure_on_test`, after everything is fixed. An edit at a hook is suppression, not deletion: without the
hook the model is what it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.errors import DataError
from mtsae_lens.progress import phase, track
from mtsae_lens.records import fields_of
from mtsae_lens.sae.collapse import firing_counts
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.gates import AlwaysOpen
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.candidates import FeatureCandidate, Grid, fit_gates, gather_evidence, ranked_candidates
from mtsae_lens.unlearning.changes import (
    Change,
    measure_further,
    pool_draws,
    summarize_documents,
    summarize_edit,
    summarize_effect,
)
from mtsae_lens.unlearning.edit_kinds import EDIT_KINDS
from mtsae_lens.unlearning.gate_kinds import GateChoice
from mtsae_lens.unlearning.measures.effects import as_logits, max_identity_error, mean_loss, measure_with_controls, model_losses
from mtsae_lens.unlearning.recovery.attack import AttackedTexts, attack_recovery, measure_controls
from mtsae_lens.unlearning.recovery.hardening import choose_hardened
from mtsae_lens.unlearning.recovery.perturbation import RecoverySettings
from mtsae_lens.unlearning.results import CorpusEffect, EditedCorpus, EditResult
from mtsae_lens.unlearning.selection.ranking import matched_random
from mtsae_lens.unlearning.selection.statistics import firing_statistics
from mtsae_lens.unlearning.sweep import Candidate, Outcome, Setting, most_forgetting, nearest_to, sweep, within_budgets
from mtsae_lens.unlearning.task import Task

MAX_IDENTITY_ERROR = 1e-4  # in logits; the float32 rounding error of h + decode(e) - decode(e)


@dataclass(frozen=True)
class UnlearningSettings:
    """The settings of the sweep on TUNE, and the budgets that the chosen setting must respect."""

    grid: Grid = field(default_factory=Grid)
    far_budget: float = 0.05
    """The most that the loss on a far text may rise on TUNE, in nats per token."""
    near_budget: float = 0.1
    """The most that the loss on a near text may rise on TUNE, in nats per token."""
    min_ratio: float = 5.0
    """How many times as often a feature must fire on the forget text as on each far text, for the score `frequency_ratio`."""
    n_random_draws: int = 20
    seed: int = 0
    recovery: RecoverySettings | None = None
    """How the chosen edit is attacked with perturbations at the hook; None leaves the attack out."""
    gate: GateChoice = field(default_factory=GateChoice)


@dataclass(frozen=True, eq=False)
class Chosen:
    """The edit that was chosen on SELECT and TUNE, and everything that was tried."""

    candidate: FeatureCandidate
    sweep: tuple[Outcome, ...]

    @property
    def edit(self) -> Edit:
        """Return the chosen edit."""
        return self.candidate.edit

    @property
    def setting(self) -> Setting:
        """Return how the edit was made."""
        return self.candidate.setting


def choose(lm: HookedLM, task: Task, settings: UnlearningSettings, reference: AnyHookedModel | None = None) -> Chosen:
    """Select features and fit the gate on SELECT; choose the number of features, the multiplier and the gate's threshold on TUNE.

    Only settings within both budgets are considered. With a reference (a model trained without the forget text), the setting whose
    forget loss is nearest to the reference's is chosen, because a higher loss is damage, not forgetting. Without a reference, it is the
    setting with the highest forget loss that does not exceed the loss of a uniform guess.

    Args:
        lm: the model with its SAE.
        task: the corpora.
        settings: what is tried, and the budgets.
        reference: the model trained without the forget text; None without one.

    Returns:
        The chosen edit and the outcome of every candidate.

    Raises:
        DataError: no feature prefers the forget text, or no setting stays within the budgets.
    """
    gates = fit_gates(lm, task, settings.grid.false_positive_rates, settings.gate)
    evidence = gather_evidence(lm, task)
    if None not in settings.grid.false_positive_rates:
        evidence = evidence.without_near()  # a gate spares near text better than the choice of features does
    candidates = ranked_candidates(evidence, settings.grid, gates, min_ratio=settings.min_ratio)
    if not candidates:
        collapse = firing_counts(evidence.forget_statistics.rate).warning
        remedy = f": {collapse}" if collapse else "; train a wider SAE, lower --min-ratio, or choose by another score"
        raise DataError(
            f"expected features that prefer the forget text, got none by the scores {', '.join(settings.grid.scores)}{remedy}"
        )
    outcomes = sweep(lm, task, candidates)
    place = decide(lm, task, settings, candidates, outcomes, reference)
    return Chosen(candidates[place], tuple(outcomes))


def decide(
    lm: HookedLM,
    task: Task,
    settings: UnlearningSettings,
    candidates: Sequence[Candidate],
    outcomes: Sequence[Outcome],
    reference: AnyHookedModel | None,
) -> int:
    """Choose one of the settings that were tried on TUNE, as `choose` does.

    If the settings say how edits are attacked, and several ranks of the removed error were tried, the choice among the ranks is the setting of
    which the attack brings back least (`choose_hardened`).

    Args:
        lm: the model with its SAE.
        task: the corpora.
        settings: the budgets, and how edits are attacked.
        candidates: the edits that were tried.
        outcomes: their outcomes.
        reference: the model trained without the forget text; None without one.

    Returns:
        Index of the setting.

    Raises:
        DataError: no setting stays within the budgets.
    """
    within = within_budgets(outcomes, settings.near_budget, settings.far_budget)
    if not within:
        best = min(outcomes, key=lambda o: max(o.far - settings.far_budget, o.near - settings.near_budget))
        raise DataError(
            f"expected a setting within the budgets on TUNE, got none (nearest: far {best.far:.3f}, near {best.near:.3f} nats); raise "
            "--far-budget or --near-budget, or give text that is farther away"
        )
    goal = None
    if reference is not None:
        table = task.table(task.forget, "tune", lm.cutter)
        (loss,) = model_losses([as_logits(reference, lm.cutter)], lm.model, lm.cutter, table, lm.batch_size)
        goal = loss.nll_delta

    def choose_best(places: Sequence[int]) -> int:
        most = most_forgetting(outcomes, places, math.log(lm.model.cfg.d_vocab))
        place = most if goal is None else nearest_to(outcomes, places, goal)
        return min(places, key=lambda p: outcomes[p].forget_nll) if place is None else place

    if settings.recovery is None:
        return choose_best(within)
    return choose_hardened(lm, task, candidates, outcomes, choose_best, within, settings.recovery)


def check_identity(lm: HookedLM, tables: Mapping[str, TokenTable]) -> float:
    """Check that the splice without an edit does not change the model.

    Args:
        lm: the model with its SAE.
        tables: contexts by source.

    Returns:
        The largest change of a logit.

    Raises:
        RuntimeError: a logit changes by more than rounding explains, so results of this splice would be wrong.
    """
    checked = track(tables.items(), "checking the splice without an edit", "text", len(tables))
    errors = {source: max_identity_error(lm, table) for source, table in checked}
    worst = max(errors, key=lambda source: (math.isnan(errors[source]), errors[source]))
    if not errors[worst] <= MAX_IDENTITY_ERROR:  # NaN fails too
        raise RuntimeError(f"the splice without an edit changes the logits by {errors[worst]:.3g} on {worst}")
    return errors[worst]


def measure_on_test(
    lm: HookedLM,
    task: Task,
    settings: UnlearningSettings,
    chosen: Chosen,
    reference: AnyHookedModel | None = None,
) -> EditResult:
    """Measure the chosen edit on TEST text, once, together with its baselines.

    The baselines are the same features set to zero everywhere (`zero`; carried on in time if the edit is), the edit without its gate
    (`clamp`), matched random features behind the same gate, and the reference.

    Args:
        lm: the model with its SAE.
        task: the corpora.
        settings: number of random draws, and the seed.
        chosen: the edit that `choose` returned.
        reference: the model trained without the forget text; None without one.
    """
    candidate = chosen.candidate
    baselines = _make_baselines(candidate)
    draws = matched_random_edits(lm, task, candidate, settings.n_random_draws, settings.seed)
    tables = task.tables("test", lm.cutter)
    identity_error = check_identity(lm, tables)
    edits = list(baselines.values())
    n_edits = len(edits) + len(draws)
    n_runs = n_edits * sum(lm.n_batches(table) for table in tables.values())
    with phase(f"measuring {n_edits} edits on TEST", "run", n_runs):
        effects = {source: measure_with_controls(lm, table, edits, draws) for source, table in tables.items()}
    place_of_edit = len(baselines) - 1
    rows: dict[str, dict[str, CorpusEffect]] = {name: {} for name in baselines}
    corpora: dict[str, EditedCorpus] = {}
    for source, table in track(tables.items(), "resampling documents", "text", len(tables)):
        of_edits, _ = effects[source]
        for name, effect in zip(baselines, of_edits, strict=True):
            rows[name][source] = summarize_effect(effect, settings.seed)
        nll_reference = (
            None if reference is None else mean_loss(as_logits(reference, lm.cutter), lm.cutter, table, lm.batch_size)
        )
        corpora[source] = summarize_edit(of_edits[place_of_edit], settings.seed, task.role(source), nll_reference)
    further = measure_further(lm, task, Change(candidate.edit), reference, settings.seed)
    recovery = None
    if settings.recovery is not None:
        texts = recovery_texts(lm, task)
        controls = measure_controls(lm, texts, settings.recovery, reference)
        recovery = attack_recovery(lm, Change(candidate.edit), texts, settings.recovery, controls=controls)
    return EditResult(
        corpora=corpora,
        random_control={source: pool_draws(of_draws) for source, (_, of_draws) in effects.items()},
        baselines=rows,
        documents={source: summarize_documents(of_edits[place_of_edit]) for source, (of_edits, _) in effects.items()},
        identity_error=identity_error,
        recovery=recovery,
        **fields_of(further),
    )


def _make_baselines(candidate: FeatureCandidate) -> dict[str, Edit]:
    return {
        "zero": FeatureEdit(candidate.features, carried=EDIT_KINDS[candidate.kind].carried),
        "clamp": replace(candidate.edit, gate=AlwaysOpen()),  # type: ignore[type-var]  # edits are frozen dataclasses
        "gated_clamp": candidate.edit,
    }


def recovery_texts(lm: HookedLM, task: Task) -> AttackedTexts:
    """Return the texts of a recovery attack: an attacker has the forget text of SELECT, and TEST is measured, with near text and the first far
    corpus.

    Args:
        lm: the model with its SAE.
        task: the corpora.
    """
    return AttackedTexts(
        task.table(task.forget, "select", lm.cutter),
        task.table(task.forget, "test", lm.cutter),
        {source: task.table(source, "test", lm.cutter) for source in (*task.sources("near"), task.sources("far")[0])},
    )


def matched_random_edits(lm: HookedLM, task: Task, candidate: FeatureCandidate, n_draws: int, seed: int) -> list[Edit]:
    """Draw features that fire as often and as strongly on the forget text but were not chosen, and edit them in the same way.

    Args:
        lm: the model with its SAE.
        task: the corpora; the forget text is read from SELECT.
        candidate: the edit to match.
        n_draws: number of edits to return.
        seed: seed of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    statistics = firing_statistics(lm, task.table(task.forget, "select", lm.cutter))
    return [candidate.of(matched_random(statistics, candidate.features, generator)) for _ in range(n_draws)]
