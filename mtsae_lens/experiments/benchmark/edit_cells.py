"""Measure edits at a hook: of the features of one SAE, and of the dense direction with that SAE's gate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mtsae_lens.experiments.benchmark.arms import CONTROL_BUDGETS, DIRECTION_MULTIPLIERS, MAIN_BUDGET, OURS, BenchmarkSize
from mtsae_lens.experiments.benchmark.attack_cell import attack
from mtsae_lens.experiments.benchmark.cells import (
    DrawnDocument,
    MeasuredControl,
    MeasuredCorpus,
    MethodResult,
    MethodsCell,
    ReadSetting,
)
from mtsae_lens.experiments.benchmark.low_rank_cell import can_imitate, measure_low_rank
from mtsae_lens.experiments.benchmark.measuring import summarize_with_documents
from mtsae_lens.experiments.benchmark.reading import find_main_place, most, nearest, read_sweep
from mtsae_lens.experiments.benchmark.setup import BenchmarkSetup
from mtsae_lens.records import fields_of
from mtsae_lens.splice.gate_interface import Gate
from mtsae_lens.unlearning.candidates import (
    FeatureCandidate,
    direction_candidates,
    feature_candidates,
    fit_gates,
    gather_evidence,
    rankings,
)
from mtsae_lens.unlearning.changes import Change, measure_further, pool_draws
from mtsae_lens.unlearning.measures.effects import edit_losses, measure_edits
from mtsae_lens.unlearning.measures.results import EditLoss
from mtsae_lens.unlearning.protocol import check_identity, matched_random_edits
from mtsae_lens.unlearning.selection.directions import difference_of_means
from mtsae_lens.unlearning.sweep import Candidate, Outcome, sweep
from mtsae_lens.unlearning.task import SPARED, Role

MIN_RATIO = 5.0
DIRECTION = "difference of means"
LOW_RANK = f"{OURS}, low-rank weights"
CONTROL_ROLES: tuple[Role, ...] = ("forget", "near")


def edit_cell(setup: BenchmarkSetup, size: BenchmarkSize, architecture: str, seed: int, *, attacked: bool) -> MethodsCell:
    """Measure all methods that edit at the hook of one SAE.

    They are `architecture` itself, its features rescaled without a gate, and for MTSAE the dense direction with and without its gate. If
    the MTSAE is attacked, its main edit is also imitated by low-rank weights, which are measured and attacked. They need a language model
    and a hook that `mtsae export` knows.

    Args:
        setup: the models and tables of the task.
        size: how much work to do.
        architecture: name of the SAE in `BenchmarkSettings.saes`, mostly its architecture.
        seed: seed of the SAE.
        attacked: whether the main edit is measured in full and attacked.
    """
    setup = setup.opened()
    methods: dict[str, MethodResult] = {}
    for name, candidates in _candidates(setup, size, architecture).items():
        if not candidates:  # an empty result, so that every method has one for every seed
            methods[name] = MethodResult(tune=(), test={})
            continue
        outcomes = sweep(setup.lm, setup.task, candidates)
        places = read_sweep(outcomes, math.log(setup.lm.model.cfg.d_vocab), setup.goal)
        test = _measure_on_test(setup, size, candidates, outcomes, places, seed, controlled=name == architecture)
        further = harm = None
        main = find_main_place(places)
        if attacked and main is not None and name in (architecture, DIRECTION):
            change = Change(candidates[main].edit)
            further = measure_further(setup.lm, setup.task, change, setup.reference, seed)
            harm = attack(setup, change, size.relearned_documents, seed, size.n_relearning_steps, size.recovery)
        methods[name] = MethodResult(tune=tuple(outcomes), test=test, main=further, attacks=harm)
        if attacked and main is not None and name == OURS and can_imitate(setup):
            methods[LOW_RANK] = measure_low_rank(setup, size, candidates[main].edit, outcomes[main].setting, seed)
    return MethodsCell(methods=methods, identity_error=_check_identity(setup))


def _check_identity(setup: BenchmarkSetup) -> float:
    return check_identity(setup.lm, setup.task.tables("tune", setup.lm.cutter, ("forget", *SPARED)))


def _candidates(setup: BenchmarkSetup, size: BenchmarkSize, architecture: str) -> dict[str, list[Candidate]]:
    lm, task = setup.lm, setup.task
    gated = setup.task_of.gated(size)
    gates = fit_gates(lm, task, (*gated.false_positive_rates, None), setup.task_of.gate)
    closed: dict[float | None, Gate] = {rate: gate for rate, gate in gates.items() if rate is not None}
    always: dict[float | None, Gate] = {None: gates[None]}
    evidence = gather_evidence(lm, task)
    of_gated = evidence.without_near()  # a gate spares near text better than the choice of features does
    far = rankings(of_gated, gated, min_ratio=MIN_RATIO)
    near = rankings(evidence, size.ungated, min_ratio=MIN_RATIO)
    found: dict[str, list[Candidate]] = {
        architecture: [*feature_candidates(far, gated, closed, of_gated)],
        f"{architecture}, no gate": [*feature_candidates(near, size.ungated, always, evidence)],
    }
    if architecture == OURS:
        direction, center = difference_of_means(lm, evidence.forget, evidence.retain)
        found[DIRECTION] = direction_candidates(direction, center, DIRECTION_MULTIPLIERS, closed)
        found[f"{DIRECTION}, no gate"] = direction_candidates(direction, center, DIRECTION_MULTIPLIERS, always)
    return found


def _measure_on_test(
    setup: BenchmarkSetup,
    size: BenchmarkSize,
    candidates: Sequence[Candidate],
    outcomes: Sequence[Outcome],
    places: Mapping[str, int],
    seed: int,
    *,
    controlled: bool,
) -> dict[str, ReadSetting]:
    """Measure every chosen edit on TEST, once, and matched random features if features were chosen."""
    lm, task = setup.lm, setup.task
    chosen = sorted(set(places.values()))
    edits = [candidates[place].edit for place in chosen]
    corpora: dict[int, dict[str, MeasuredCorpus]] = {place: {} for place in chosen}
    for source, table in task.tables("test", lm.cutter).items():
        for place, effect in zip(chosen, measure_edits(lm, table, edits), strict=True):
            corpora[place][source] = summarize_with_documents(effect, seed)
    with_control = [name for name in (*map(nearest, CONTROL_BUDGETS), most(MAIN_BUDGET)) if controlled and name in places]
    controls = {
        place: _measure_control(setup, candidates[place], size.n_random_draws, seed)
        for place in dict.fromkeys(places[name] for name in with_control)
    }
    return {
        name: ReadSetting(
            setting=outcomes[place].setting,
            corpora=corpora[place],
            random=controls[place] if name in with_control else None,
        )
        for name, place in places.items()
    }


def _measure_control(setup: BenchmarkSetup, candidate: Candidate, n_draws: int, seed: int) -> dict[str, MeasuredControl]:
    """Measure the same edit of matched random features on the forget text and on near text."""
    assert isinstance(candidate, FeatureCandidate)
    lm, task = setup.lm, setup.task
    draws = matched_random_edits(lm, task, candidate, n_draws, seed)
    tables = task.tables("test", lm.cutter, CONTROL_ROLES)
    losses = {source: edit_losses(lm, table, draws) for source, table in tables.items()}
    return {
        source: MeasuredControl(**fields_of(pool_draws(drawn)), documents=_pool_documents(drawn))
        for source, drawn in losses.items()
    }


def _pool_documents(effects: Sequence[EditLoss]) -> tuple[DrawnDocument, ...]:
    """Return the mean change of each document over the draws."""
    n_tokens = effects[0].by_document(effects[0].n_tokens)
    deltas = sum(effect.by_document(effect.nll_edited - effect.nll_clean) for effect in effects) / len(effects)
    names = dict.fromkeys(effects[0].documents)
    rows = zip(names, n_tokens.tolist(), deltas.tolist(), strict=True)  # type: ignore[union-attr]
    return tuple(DrawnDocument(document=name, n_tokens=int(n), nll_delta=d / n) for name, n, d in rows if n)
