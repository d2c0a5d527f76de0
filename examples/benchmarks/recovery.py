"""Measure how much of the forgetting a perturbation at the hook brings back, for edits alone and combined with an edit of the SAE's error.

For each SAE: its features, matched random features and (for the first SAE) the difference of means, behind the gate of that SAE. Each edit
is chosen on TUNE among those within a budget, nearest to the reference; a combined edit is chosen among ranks of the removed error by the
attack on TUNE. TEST is measured once. Everything is written to a JSON file, and the table is printed as Markdown.

    python examples/benchmarks/recovery.py SAE_FOLDER [SAE_FOLDER ...] [--task domain] [--out recovery.json]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.experiments.benchmark.arms import DIRECTION_MULTIPLIERS, TASKS
from mtsae_lens.opening import open_sae
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.candidates import (
    ErrorRemoval,
    FeatureCandidate,
    Grid,
    direction_candidates,
    feature_candidates,
    fit_gates,
    gather_evidence,
    rankings,
)
from mtsae_lens.unlearning.changes import Change
from mtsae_lens.unlearning.protocol import UnlearningSettings, decide, matched_random_edits, recovery_texts
from mtsae_lens.unlearning.recovery.attack import attack_recovery, measure_controls
from mtsae_lens.unlearning.recovery.perturbation import RecoverySettings
from mtsae_lens.unlearning.recovery.results import SUBSPACES, Recovery
from mtsae_lens.unlearning.selection.directions import difference_of_means
from mtsae_lens.unlearning.sweep import Candidate, Outcome, sweep
from mtsae_lens.unlearning.task import Task

RANKS = (0, 16, 64, 128)
BUDGET = 0.05


def chosen(
    lm: HookedLM, task: Task, settings: UnlearningSettings, candidates: Sequence[Candidate], reference: Any
) -> Iterator[tuple[str, Candidate, Outcome]]:
    """Yield the edit that is chosen without an error edit, and the one that is chosen with one."""
    outcomes = sweep(lm, task, candidates)
    for name, combined in (("alone", False), ("with the error", True)):
        places = [n for n, c in enumerate(candidates) if bool(c.setting.get("error_rank")) == combined]
        kept, seen = [candidates[n] for n in places], [outcomes[n] for n in places]
        place = decide(lm, task, settings, kept, seen, reference)
        yield name, kept[place], seen[place]


def methods(
    lm: HookedLM, task: Task, settings: UnlearningSettings, name: str, reference: Any, *, dense: bool
) -> Iterator[tuple[str, Candidate]]:
    grid = settings.grid
    gates, evidence = fit_gates(lm, task, grid.false_positive_rates), gather_evidence(lm, task)
    ranked = rankings(evidence.without_near(), grid, min_ratio=settings.min_ratio)
    for how, candidate, outcome in chosen(lm, task, settings, feature_candidates(ranked, grid, gates, evidence), reference):
        print(f"# {name}, {how}: {candidate.setting}; TUNE {outcome.forget:+.3f}", flush=True)
        yield f"{name}, {how}", candidate
        assert isinstance(candidate, FeatureCandidate)
        (random,) = matched_random_edits(lm, task, candidate, 1, settings.seed)
        yield f"random features of {name}, {how}", replace(candidate, edit=random)
    if dense:
        direction, center = difference_of_means(lm, evidence.forget, evidence.retain)
        tried = direction_candidates(
            direction, center, DIRECTION_MULTIPLIERS, gates, ErrorRemoval.fit(evidence, grid.error_ranks)
        )
        for how, candidate, outcome in chosen(lm, task, settings, tried, reference):
            print(f"# difference of means, {how}: {candidate.setting}; TUNE {outcome.forget:+.3f}", flush=True)
            yield f"difference of means, {how}", candidate


def row(name: str, found: Recovery) -> str:
    cells = [name, f"{found.nll_edited - found.nll_clean:+.2f}"]
    for subspace in SUBSPACES:
        result = found.by_subspace.get(subspace)
        if result is None:
            cells.append("")
            continue
        if result.attacked is None or result.attacked.share is None:
            cells.append("no such direction" if not result.n_directions else "nothing forgotten")
            continue
        held = result.gate_held.share if result.gate_held else None
        cells.append(f"{result.attacked.share:.0%} ({result.n_directions}; held {held.mean:.0%})" if held else "")
    last = found.by_subspace[SUBSPACES[-1]]
    random, control = last.random, last.beyond_control
    cells.append("" if random is None or random.share is None else f"{random.share.mean:.0%}")
    cells.append("" if control is None else f"{control:.0%}")
    parts = [last.parts[part].share for part in ("error", "untouched features", "edited features")] if last.parts else []
    cells.append(" / ".join("" if part is None else f"{part.mean:.0%}" for part in parts))
    context = found.by_context
    cells.append("" if context is None or context.attacked.share is None else f"{context.attacked.share:.0%}")
    cells.append(f"{max(last.others.values()):+.3f}")
    return "| " + " | ".join(cells) + " |"


HEADER = (
    "method|nats forgotten|blind (dimensions; gate held)|nearly blind|any direction|random direction|beyond the unedited model|"
    "error / untouched / edited part|by context|nats added to the worst other text"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("saes", nargs="+", type=Path)
    parser.add_argument("--task", default="domain", choices=sorted(TASKS))
    parser.add_argument("--contexts", type=int, default=24)
    parser.add_argument("--epsilon", type=float, default=0.5)
    parser.add_argument("--dense", action=argparse.BooleanOptionalAction, default=True, help="the difference of means too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("recovery.json"))
    given = parser.parse_args()
    reference = load_language_model("embedded-retrained")
    grid = Grid(("frequency_difference",), (8, 32), (1.0, 2.0, 4.0), (0.01,), error_ranks=RANKS)
    recovery = RecoverySettings(epsilon=given.epsilon, seed=given.seed)
    settings = UnlearningSettings(grid=grid, near_budget=BUDGET, far_budget=BUDGET, seed=given.seed, recovery=recovery)
    plain = replace(recovery, n_context_steps=0)  # of random features, only the attack in any direction
    task, start, found = TASKS[given.task].task(given.contexts), time.monotonic(), {}
    print("| " + " | ".join(HEADER.split("|")) + " |\n|" + "---|" * len(HEADER.split("|")), flush=True)
    for number, folder in enumerate(given.saes):
        lm, _ = open_sae(folder, model=None, device="cpu", batch_size=8)
        name = {"mtsae": "MTSAE", "topk": "TopK"}.get(lm.sae.cfg.architecture(), lm.sae.cfg.architecture())
        controls = measure_controls(lm, recovery_texts(lm, task), recovery, reference)
        print(f"# gains of the same search without an edit: {controls.nats()}", flush=True)
        for method, candidate in methods(lm, task, settings, name, reference, dense=given.dense and not number):
            fast = {"subspaces": SUBSPACES[-1:], "settings": plain} if method.startswith("random") else {"settings": recovery}
            attacked = attack_recovery(lm, Change(candidate.edit), recovery_texts(lm, task), controls=controls, **fast)
            found[method] = {"setting": candidate.setting, "recovery": attacked.to_json()}
            print(row(method, attacked), flush=True)
            given.out.write_text(json.dumps(found, indent=1))
    print(f"# {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
