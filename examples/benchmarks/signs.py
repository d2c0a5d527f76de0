"""Compare edits that push features below zero with edits that amplify them, by dose, on TUNE.

    e -> -m e changes a feature by -(1 + m) e. The dose 1 + m is 1 for ablation and 2 for a clamp at m = 1. A negative dose amplifies the
    feature: -1 doubles it (m = -2).

For each SAE the features of one ranking are edited, and for the first SAE the difference of means too, behind the gate of that SAE and
without a gate. TEST is not read. Everything is written to a JSON file, and the table is printed as Markdown.

    python examples/benchmarks/signs.py SAE_FOLDER [SAE_FOLDER ...] [--task domain] [--out signs.json]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from mtsae_lens.experiments.benchmark.arms import TASKS
from mtsae_lens.opening import open_sae
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.candidates import (
    Grid,
    direction_candidates,
    fit_gates,
    gather_evidence,
    ranked_candidates,
)
from mtsae_lens.unlearning.selection.directions import difference_of_means
from mtsae_lens.unlearning.sweep import Candidate, Outcome, sweep
from mtsae_lens.unlearning.task import Task

DOSES = (1.0, 2.0, 3.0, 5.0)
RATES = (0.01, None)
"""False-positive rate of the gate; None for no gate."""


def arms(lm: HookedLM, task: Task, name: str, n_features: int, *, dense: bool) -> Iterator[tuple[str, list[Candidate]]]:
    multipliers = tuple(sign * dose - 1 for dose in DOSES for sign in (1, -1))
    grid = Grid(("frequency_difference",), (n_features,), multipliers, RATES)
    gates, evidence = fit_gates(lm, task, RATES), gather_evidence(lm, task).without_near()
    yield name, [*ranked_candidates(evidence, grid, gates, min_ratio=5.0)]
    if dense:
        direction, center = difference_of_means(lm, evidence.forget, evidence.retain)
        yield "difference of means", direction_candidates(direction, center, multipliers, gates)


def rows(name: str, outcomes: Sequence[Outcome]) -> Iterator[str]:
    for rate in RATES:
        found = {o.setting["multiplier"]: o for o in outcomes if o.setting["false_positive_rate"] == rate}
        for sign, label in ((1, "below zero"), (-1, "amplified")):
            cells = [f"{o.forget:+.2f} ({max(o.near, o.far):+.3f})" for dose in DOSES for o in [found[sign * dose - 1]]]
            yield "| " + " | ".join([f"{name}, {'gated' if rate else 'no gate'}, {label}", *cells]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("saes", nargs="+", type=Path)
    parser.add_argument("--task", default="domain", choices=sorted(TASKS))
    parser.add_argument("--features", type=int, default=8)
    parser.add_argument("--contexts", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("signs.json"))
    given = parser.parse_args()
    task, start, found = TASKS[given.task].task(given.contexts), time.monotonic(), {}
    print(
        "| nats forgotten (highest cost), by size of the dose | " + " | ".join(f"{dose:g}" for dose in DOSES) + " |", flush=True
    )
    print("|" + "---|" * (len(DOSES) + 1), flush=True)
    for number, folder in enumerate(given.saes):
        lm, _ = open_sae(folder, model=None, device="cpu", batch_size=8)
        name = {"mtsae": "MTSAE", "topk": "TopK"}.get(lm.sae.cfg.architecture(), lm.sae.cfg.architecture())
        for arm, candidates in arms(lm, task, name, given.features, dense=not number):
            outcomes = sweep(lm, task, candidates)
            found[arm] = [{"setting": o.setting, "forget": o.forget, "near": o.near, "far": o.far} for o in outcomes]
            given.out.write_text(json.dumps(found, indent=1))
            print("\n".join(rows(arm, outcomes)), flush=True)
    print(f"# {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
