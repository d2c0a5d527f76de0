"""Edits at a hook: the features of one SAE, and the dense direction behind that SAE's gate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mtsae_lens.experiments.benchmark.arms import CONTROL_BUDGETS, DIRECTION_MULTIPLIERS, MAIN_BUDGET, OURS, Scale
from mtsae_lens.experiments.benchmark.attack_cell import attacks
from mtsae_lens.experiments.benchmark.reading import main_place, most, nearest, read_sweep, tune_rows
from mtsae_lens.experiments.benchmark.setup import Subject
from mtsae_lens.splice.gates import Gate
from mtsae_lens.unlearning.candidates import (
    FeatureCandidate,
    direction_candidates,
    feature_candidates,
    fit_gates,
    gather_evidence,
    rankings,
)
from mtsae_lens.unlearning.changes import Change, document_rows, effect_row, further_measures, pooled
from mtsae_lens.unlearning.measures.effects import EditEffect, EditLoss, edit_losses, measure_edits
from mtsae_lens.unlearning.protocol import checked_identity, random_twins
from mtsae_lens.unlearning.selection.directions import difference_of_means
from mtsae_lens.unlearning.sweep import Candidate, Outcome, sweep
from mtsae_lens.unlearning.task import SPARED, Role

MIN_RATIO = 5.0
DIRECTION = "difference of means"
CONTROL_ROLES: tuple[Role, ...] = ("forget", "near")


def edit_cell(subject: Subject, scale: Scale, architecture: str, seed: int, *, attacked: bool) -> dict[str, Any]:
    """All methods that edit at the hook with this SAE: `architecture`, the same without a gate, and for ours the dense direction."""
    subject = subject.opened()
    methods: dict[str, dict[str, Any]] = {}
    for name, candidates in _candidates(subject, scale, architecture).items():
        if not candidates:  # kept, so that every method has a result of every seed
            methods[name] = {"tune": [], "test": {}}
            continue
        outcomes = sweep(subject.lm, subject.task, candidates)
        places = read_sweep(outcomes, math.log(subject.lm.model.cfg.d_vocab), subject.goal)
        methods[name] = _measured(subject, scale, candidates, outcomes, places, seed, controlled=name == architecture)
        main = main_place(places)
        if attacked and main is not None and name in (architecture, DIRECTION):
            change = Change(candidates[main].edit)
            methods[name]["main"] = further_measures(subject.lm, subject.task, change, subject.reference, seed)
            methods[name]["attacks"] = attacks(subject, change, scale.relearned_documents, seed, scale.n_relearning_steps)
    return {"methods": methods, "identity_error": _identity(subject)}


def _identity(subject: Subject) -> float:
    return checked_identity(subject.lm, subject.task.tables("tune", subject.lm.cutter, ("forget", *SPARED)))


def _candidates(subject: Subject, scale: Scale, architecture: str) -> dict[str, list[Candidate]]:
    lm, task = subject.lm, subject.task
    rates = (*scale.gated.false_positive_rates, None)
    gates = fit_gates(lm, task, rates)
    closed: dict[float | None, Gate] = {rate: gate for rate, gate in gates.items() if rate is not None}
    always: dict[float | None, Gate] = {None: gates[None]}
    evidence = gather_evidence(lm, task)
    far = rankings(evidence.without_near(), scale.gated, min_ratio=MIN_RATIO)
    near = rankings(evidence, scale.ungated, min_ratio=MIN_RATIO)
    found: dict[str, list[Candidate]] = {
        architecture: [*feature_candidates(far, scale.gated, closed, evidence)],
        f"{architecture}, no gate": [*feature_candidates(near, scale.ungated, always, evidence)],
    }
    if architecture == OURS:
        direction, center = difference_of_means(lm, evidence.forget, evidence.retain)
        found[DIRECTION] = direction_candidates(direction, center, DIRECTION_MULTIPLIERS, closed)
        found[f"{DIRECTION}, no gate"] = direction_candidates(direction, center, DIRECTION_MULTIPLIERS, always)
    return found


def _measured(
    subject: Subject,
    scale: Scale,
    candidates: Sequence[Candidate],
    outcomes: Sequence[Outcome],
    places: Mapping[str, int],
    seed: int,
    *,
    controlled: bool,
) -> dict[str, Any]:
    """TEST, once: every chosen edit, and matched random features where features were chosen."""
    lm, task = subject.lm, subject.task
    chosen = sorted(set(places.values()))
    edits = [candidates[place].edit for place in chosen]
    test: dict[str, dict[str, Any]] = {
        name: {"setting": outcomes[place].setting, "corpora": {}} for name, place in places.items()
    }
    for source, table in task.tables("test", lm.cutter).items():
        rows = {p: test_row(effect, seed) for p, effect in zip(chosen, measure_edits(lm, table, edits), strict=True)}
        for name, place in places.items():
            test[name]["corpora"][source] = rows[place]
    controls: dict[int, dict[str, Any]] = {}
    for name in (*map(nearest, CONTROL_BUDGETS), most(MAIN_BUDGET)):
        if controlled and name in places:
            place = places[name]
            if place not in controls:
                controls[place] = _random(subject, candidates[place], scale.n_random_draws, seed)
            test[name]["random"] = controls[place]
    return {"tune": tune_rows(outcomes), "test": test}


def _random(subject: Subject, candidate: Candidate, n_draws: int, seed: int) -> dict[str, Any]:
    """The same edit of matched random features, on the text to forget and the text near to it."""
    assert isinstance(candidate, FeatureCandidate)
    lm, task = subject.lm, subject.task
    draws = random_twins(lm, task, candidate, n_draws, seed)
    tables = task.tables("test", lm.cutter, CONTROL_ROLES)
    losses = {source: edit_losses(lm, table, draws) for source, table in tables.items()}
    return {source: pooled(drawn) | _documents_of(drawn) for source, drawn in losses.items()}


def test_row(effect: EditEffect, seed: int) -> dict[str, Any]:
    """An effect with its documents, so that intervals over seeds can be made afterwards."""
    return effect_row(effect, seed) | {"documents": document_rows(effect)}


def _documents_of(effects: Sequence[EditLoss]) -> dict[str, Any]:
    """Mean change of each document over the draws, nats per token."""
    n_tokens = effects[0].by_document(effects[0].n_tokens)
    deltas = sum(effect.by_document(effect.nll_edited - effect.nll_clean) for effect in effects) / len(effects)
    names = dict.fromkeys(effects[0].documents)
    rows = zip(names, n_tokens.tolist(), deltas.tolist(), strict=True)  # type: ignore[union-attr]
    return {"documents": [{"document": name, "n_tokens": int(n), "nll_delta": d / n} for name, n, d in rows if n]}
