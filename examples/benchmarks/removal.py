"""Compare how much forgetting remains after an attack: an edit at a hook, weights that imitate it, and methods that change weights.

The edit is the one nearest to the reference within a budget on TUNE, behind its gate. The low-rank weights imitate it. The other methods
change weights with every setting of the benchmark, and the one nearest to the reference within the same budget on TUNE is measured. TEST
is measured once. *Kept* is the loss after the attack above that of the untouched model, as a share of that before the attack, with a 95%
interval over documents. Relearning counts at its lowest loss. The perturbation is one vector at the hook, in any direction. Everything is
written to a JSON file after each method, and the table is printed as Markdown.

    python examples/benchmarks/removal.py SAE_FOLDER [--task domain] [--method npo --method rmu] [--out removal.json]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtsae_lens.data.questions import is_question_source
from mtsae_lens.experiments.benchmark.arms import TASKS
from mtsae_lens.experiments.benchmark.attack_cell import RELEARNING
from mtsae_lens.experiments.benchmark.low_rank_cell import imitate
from mtsae_lens.experiments.benchmark.measuring import try_weights
from mtsae_lens.experiments.benchmark.reading import find_main_place, read_sweep
from mtsae_lens.experiments.benchmark.setup import BenchmarkSetup
from mtsae_lens.experiments.benchmark.weights_cell import train_weights
from mtsae_lens.export.low_rank import LowRankSettings
from mtsae_lens.unlearning.attacks import quantize, relearn
from mtsae_lens.unlearning.candidates import Grid, feature_candidates, fit_gates, gather_evidence, rankings
from mtsae_lens.unlearning.changes import Change, summarize_effect
from mtsae_lens.unlearning.finetuning.batches import sample_documents
from mtsae_lens.unlearning.finetuning.sweeps import sweeps_of
from mtsae_lens.unlearning.measures.effects import measure_model
from mtsae_lens.unlearning.measures.results import EditLoss
from mtsae_lens.unlearning.protocol import recovery_texts
from mtsae_lens.unlearning.recovery.attack import Controls, attack_recovery, measure_controls
from mtsae_lens.unlearning.recovery.perturbation import RecoverySettings
from mtsae_lens.unlearning.recovery.results import SUBSPACES
from mtsae_lens.unlearning.recovery.shares import MIN_FORGOTTEN, recovered
from mtsae_lens.unlearning.sweep import Outcome, Setting, sweep

GRID = Grid(("frequency_difference",), (8, 32), (1.0, 2.0, 4.0), (0.01,))
METHODS = ("edit", "low_rank", "npo", "rmu", "rep_select", "untouched", "reference")


def choose(setup: BenchmarkSetup, outcomes: Sequence[Outcome]) -> int | None:
    return find_main_place(read_sweep(outcomes, math.log(setup.lm.model.cfg.d_vocab), setup.goal))


def find_edit(setup: BenchmarkSetup) -> tuple[Change, Setting]:
    lm, task = setup.lm, setup.task
    evidence, gates = gather_evidence(lm, task), fit_gates(lm, task, GRID.false_positive_rates)
    candidates = feature_candidates(rankings(evidence.without_near(), GRID, min_ratio=5.0), GRID, gates, evidence)
    place = choose(setup, sweep(lm, task, candidates))
    assert place is not None, "no edit is within the budget"
    return Change(candidates[place].edit), candidates[place].setting


def find_weights(setup: BenchmarkSetup, loss: str, seed: int) -> tuple[Change, Setting] | None:
    runs = sweeps_of(loss, "questions" if is_question_source(setup.task_of.forget_training) else "text")
    trained = list(train_weights(setup, runs, seed))
    outcomes = try_weights(setup, trained)
    for outcome in outcomes:
        print(
            f"# {outcome.setting}: TUNE forget {outcome.forget:+.3f}, near {outcome.near:+.3f}, far {outcome.far:+.3f}",
            flush=True,
        )
    place = choose(setup, outcomes)
    return None if place is None else (Change(weights=trained[place][1]), trained[place][0])


def changes(setup: BenchmarkSetup, methods: Sequence[str], low_rank: LowRankSettings) -> Iterator[tuple[str, Change, Setting]]:
    if {"edit", "low_rank"} & set(methods):
        change, setting = find_edit(setup)
        if "edit" in methods:
            yield "edit", change, setting
        if "low_rank" in methods:
            assert change.edit is not None
            yield "low_rank", Change(weights=imitate(setup, change.edit, low_rank)), setting
    for method in methods:
        if method in ("untouched", "reference"):
            yield method, Change(weights=setup.lm.model if method == "untouched" else setup.reference), {}
        elif method not in ("edit", "low_rank"):
            found = find_weights(setup, method, low_rank.seed)
            if found is None:
                print(f"# {method}: no setting is within the budget", flush=True)
            else:
                yield method, *found


def kept(before: EditLoss, attacked: EditLoss, seed: int) -> list[float] | None:
    """Return the share of the forgetting that an attack leaves, with its interval; None if nothing was forgotten."""
    share = recovered(before, attacked, seed).share
    return None if share is None else [1 - share.mean, 1 - share.high, 1 - share.low]


def perturb(setup: BenchmarkSetup, change: Change, controls: Controls, settings: RecoverySettings) -> dict[str, Any]:
    """Add one vector at the hook, in any direction, and measure what it brings back."""
    texts = recovery_texts(setup.lm, setup.task)
    found = attack_recovery(setup.lm, change, texts, settings, controls=controls, subspaces=SUBSPACES[-1:])
    attacked = found.by_subspace[SUBSPACES[-1]].attacked
    assert attacked is not None
    share = attacked.share
    return {"nll": attacked.nll, "kept": None if share is None else [1 - share.mean, 1 - share.high, 1 - share.low]}


def attack(
    setup: BenchmarkSetup, change: Change, sizes: Sequence[int], controls: Controls, settings: RecoverySettings
) -> dict[str, Any]:
    """Measure a change on TEST, then after relearning, after rounding, and under a perturbation."""
    lm, task, seed = setup.lm, setup.task, settings.seed
    test = task.table(task.forget, "test", lm.cutter)
    effects = {source: summarize_effect(e, seed) for source, e in change.effects(lm, task.tables("test", lm.cutter)).items()}
    of_forget = effects[task.forget]
    before = measure_model(change.logits(lm), lm.model, lm.cutter, test, lm.batch_size)
    learned, found = setup.training_table(task.forget), {}
    for hook in (True, False) if change.edit is not None else (False,):
        name = "weights" if change.edit is None else "hook in place" if hook else "hook removed"
        for n in sizes:
            n_documents = min(n, len(set(learned.pieces.documents)))
            points = relearn(
                lm,
                sample_documents(learned, n_documents, seed),
                [test],
                replace(RELEARNING, seed=seed),
                weights=change.weights,
                edit=change.edit if hook or change.weights is None else None,
                hook_while_learning=hook,
            )
            lowest = min(points, key=lambda point: point.nll[0])
            result = {"nll": lowest.nll[0], "step": lowest.step, "kept": kept(before, lowest.effects[0], seed)}
            found.setdefault(name, {})[str(n)] = result
    rounded = quantize(change.weights or lm.model, 4)
    logits = replace(change, weights=rounded).logits(lm)
    at_4_bits = measure_model(logits, quantize(lm.model, 4), lm.cutter, test, lm.batch_size)
    costs = {role: max(effects[source].nll_delta for source in task.sources(role)) for role in ("near", "far")}
    return {
        "nll_clean": of_forget.nll_clean,
        "forgotten": [of_forget.nll_delta, of_forget.nll_delta_low, of_forget.nll_delta_high],
        "costs": costs,
        "relearned": found,
        "at_4_bits": at_4_bits.nll_delta,
        "perturbed": perturb(setup, change, controls, settings),
    }


def rows(name: str, result: dict[str, Any], setting: Setting) -> Iterator[str]:
    (mean, low, high), clean, rounded = result["forgotten"], result["nll_clean"], result["at_4_bits"]

    def cell(attacked: dict[str, Any]) -> str:
        nats, share = attacked["nll"] - clean, attacked["kept"]
        return f"({nats:+.2f})" if share is None else f"{share[0]:.0%} [{share[1]:.0%}, {share[2]:.0%}] ({nats:+.2f})"

    for variant, by_size in result["relearned"].items():
        cells = [
            f"{name}, {variant}" if len(result["relearned"]) > 1 else name,
            f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]",
            " / ".join(f"{cost:+.3f}" for cost in result["costs"].values()),
            *map(cell, by_size.values()),
            f"{rounded / mean:.0%} ({rounded:+.2f})" if mean > MIN_FORGOTTEN else f"({rounded:+.2f})",
            cell(result["perturbed"]),
            str(setting),
        ]
        yield "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sae", type=Path)
    parser.add_argument("--task", default="domain", choices=sorted(TASKS))
    parser.add_argument("--method", action="append", choices=METHODS, help="may be repeated; all by default")
    parser.add_argument(
        "--documents", action="append", type=int, help="to relearn from; may be repeated; 4, 16 and 64 by default"
    )
    parser.add_argument("--contexts", type=int, default=24)
    parser.add_argument("--rank", type=int, default=LowRankSettings.rank)
    parser.add_argument("--steps", type=int, default=LowRankSettings.n_steps, help="of the training of the low-rank weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("removal.json"))
    given = parser.parse_args()
    setup = BenchmarkSetup(TASKS[given.task], given.contexts, "embedded", "embedded-retrained", given.sae)
    low_rank = LowRankSettings(given.rank, given.steps, seed=given.seed)
    start, found = time.monotonic(), {}
    sizes = tuple(given.documents or (4, 16, 64))
    after = [f"kept after {n} documents" for n in sizes]
    header = [
        "method",
        "nats forgotten (TEST)",
        "cost: near / far",
        *after,
        "kept at 4 bits",
        "kept under a perturbation",
        "setting",
    ]
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header), flush=True)
    perturbations = RecoverySettings(n_context_steps=0, seed=given.seed)
    controls = measure_controls(setup.lm, recovery_texts(setup.lm, setup.task), perturbations)
    for method, change, setting in changes(setup, given.method or METHODS, low_rank):
        result = attack(setup, change, sizes, controls, perturbations)
        found[method] = {"setting": setting} | result
        given.out.write_text(json.dumps(found, indent=1))
        print("\n".join(rows(method, result, setting)), flush=True)
    print(f"# {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
