"""From the benchmark's cells to numbers, tables and sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mtsae_lens.benchmark.arms import BUDGETS, GOAL_BUDGET, OURS, BenchmarkTask, Scale
from mtsae_lens.benchmark.summary import AtCost, Estimate, at_cost, difference
from mtsae_lens.commands.parts import Part
from mtsae_lens.data.facts import is_fact_source
from mtsae_lens.reporting.benchmark_figures import cost_curves, relearning_curves
from mtsae_lens.reporting.page import Section, Table
from mtsae_lens.reporting.samples import sample_table
from mtsae_lens.unlearning.task import Task

_SHOWN_BUDGETS = (*(f"{budget:g}" for budget in BUDGETS), "goal")
_SUPPRESSION = "An edit at a hook is suppression, not deletion: without the hook the model is what it was, exactly."
Cells = Mapping[str, Mapping[str, Any]]


def benchmark_part(
    trained: Cells, cells: Cells, tasks: Mapping[str, BenchmarkTask], scale: Scale, architectures: Sequence[str]
) -> Part:
    """All of it."""
    metrics: dict[str, Any] = {"saes": dict(trained)}
    sections, tables = [_saes(trained, architectures)], []
    for name, benchmark_task in tasks.items():
        found = _TaskPart(name, benchmark_task.task(scale.contexts_per_split), cells, architectures)
        metrics[name] = found.metrics()
        sections += found.sections()
        tables.append(found.cost_table())
    return Part("unlearning", metrics, sections, tables)


def _saes(trained: Cells, architectures: Sequence[str]) -> Section:
    keys = ("l0", "explained_variance", "ce_loss_score", "dead_features")
    rows = []
    for architecture in architectures:
        seeds = [row for name, row in trained.items() if name.split("/")[0] == architecture]
        means = [sum(seed[key] for seed in seeds) / len(seeds) if key in seeds[0] else None for key in keys]
        rows.append([architecture, *means, len(seeds)])
    text = "Trained on the same text with the same width, schedule and number of tokens; measured on held-out text with SAELens's run_evals."
    return Section("The SAEs", text, table=Table(["architecture", *keys, "seeds"], rows))


class _TaskPart:
    """One task's numbers and how they are shown."""

    def __init__(self, name: str, task: Task, cells: Cells, architectures: Sequence[str]) -> None:
        self.name, self.task = name, task
        self.methods: dict[str, list[Mapping[str, Any]]] = {}
        for cell_name, cell in cells.items():
            if cell_name.startswith(f"{name}/") and "methods" in cell:
                for method, result in cell["methods"].items():
                    self.methods.setdefault(method, []).append(result)
        self.reference = cells.get(f"{name}/reference")
        self.others = [architecture for architecture in architectures if architecture != OURS and architecture in self.methods]
        self.at_cost = {
            method: {budget: found for budget in _SHOWN_BUDGETS if (found := at_cost(results, budget, task)) is not None}
            for method, results in self.methods.items()
        }

    def metrics(self) -> dict[str, Any]:
        """For `metrics.json`."""
        return {
            "at_cost": {m: {b: asdict(found) for b, found in rows.items()} for m, rows in self.at_cost.items()},
            "differences": {
                other: {b: asdict(found) for b in _SHOWN_BUDGETS if (found := self._difference(other, b)) is not None}
                for other in self.others
            },
            "goal": {m: results[0]["goal"] for m, results in self.methods.items() if "goal" in results[0]},
            "attacks": {m: results[0]["attacks"] for m, results in self.methods.items() if "attacks" in results[0]},
            "reference": self.reference,
        }

    def _difference(self, other: str, budget: str) -> Estimate | None:
        return difference(self.methods[OURS], self.methods[other], budget, self.task) if OURS in self.methods else None

    def reference_gap(self) -> float | None:
        """What the model that never saw the text loses more than the clean one."""
        return None if self.reference is None else self.reference["corpora"][self.task.forget]["nll_delta"]

    def cost_table(self) -> Table:
        """Every method at every budget."""
        asked = is_fact_source(self.task.forget)
        header = [
            "method",
            "budget",
            "forget",
            "near",
            "far",
            *(["recall"] if asked else []),
            "random",
            "seeds",
            "without a setting",
        ]
        rows = []
        for method, by_budget in self.at_cost.items():
            for budget, found in by_budget.items():
                cells = [
                    method,
                    budget,
                    _interval(found.forget),
                    _interval(found.near) if found.near else None,
                    _interval(found.far),
                ]
                cells += [f"{100 * found.exact_recall:.0f}%"] if asked else []
                rows.append([*cells, _random(found), found.forget.n_seeds, found.n_missing])
        return Table(header, rows)

    def sections(self) -> list[Section]:
        """For the page."""
        gap = self.reference_gap()
        curves = {method: list(rows.values()) for method, rows in self.at_cost.items() if rows}
        text = (
            f"Forget {self.task.forget}. Each row: the setting that forgot most on TUNE while near- and far-retain text lost at most the budget, "
            "measured on TEST, in nats per counted token, 95% intervals over seeds and documents; near and far are the corpora that lost most. "
            "Random: the same edit of features matched in firing rate and strength. "
            + ("" if gap is None else f"The reference, which never saw the text, loses {gap:+.3f}: more is damage. ")
            + _SUPPRESSION
        )
        sections = [
            Section(
                f"{self.name}: forgetting at matched cost",
                text,
                table=self.cost_table(),
                figure=cost_curves(curves, gap, "near") if self.task.sources("near") else None,
            ),
            Section(f"{self.name}: against far-retain text", figure=cost_curves(curves, gap, "far")),
            Section(
                f"{self.name}: {OURS} less every other SAE",
                "Paired by seed and document; above 0, ours forgets more.",
                self._differences(),
            ),
        ]
        goals = {method: results[0]["goal"] for method, results in self.methods.items() if "goal" in results[0]}
        if goals:
            sections.append(self._goal_section(goals))
        attacked = {method: results[0]["attacks"] for method, results in self.methods.items() if "attacks" in results[0]}
        if attacked:
            sections += self._attack_sections(attacked)
        if OURS in goals and goals[OURS]["samples"]:
            lead = f"Greedy continuations of held-out text, before and after the edit with {OURS} (seed 0)."
            sections.append(Section(f"{self.name}: samples", lead, html=sample_table(goals[OURS]["samples"])))
        return sections

    def _differences(self) -> Table:
        rows = []
        for other in self.others:
            for budget in _SHOWN_BUDGETS:
                found = self._difference(other, budget)
                if found is not None:
                    rows.append([other, budget, _interval(found), found.n_seeds])
        return Table(["SAE", "budget", "difference", "seeds"], rows)

    def _goal_section(self, goals: Mapping[str, Mapping[str, Any]]) -> Section:
        """The setting nearest to the reference, in full."""
        text = (
            f"Of seed 0, the setting within {GOAL_BUDGET:g} nats whose forgetting on TUNE is nearest to the reference's. Gap: its loss less the "
            "reference's (0 is best; above is damage). Calibrated: nats added after an output bias was refitted, so that shifted logits do not count. "
            "KS: distance between the two models' losses per document (0: indistinguishable). Gate: share of forget positions at which it is open, and its "
            "AUROC against the near text (chance 0.5). Distinct-2 and repeated 4-grams of greedy text on the forget prompts, before -> after."
        )
        header = ["method", "gap", "KS", "calibrated", "gate open", "gate AUROC", "distinct-2", "repeated"]
        return Section(
            f"{self.name}: beside the reference", text, Table(header, [self._goal_row(m, g) for m, g in goals.items()])
        )

    def _goal_row(self, method: str, goal: Mapping[str, Any]) -> list[Any]:
        reference, gate = goal.get("reference"), goal.get("gate")
        health = goal["generation"].get(self.task.forget)
        near = next(iter(gate["others"].values())) if gate else None
        return [
            method,
            f"{reference['nll_gap']:+.3f}" if reference else None,
            f"{reference['documents']['ks']:.2f}" if reference else None,
            f"{goal['calibrated_nll_delta']:+.3f}",
            f"{100 * gate['true_positives']['positions']:.0f}%" if gate else None,
            f"{near['by_position'][0]['auroc']:.3f}" if near else None,
            *(
                (f"{health['clean'][key]:.2f} -> {health['edited'][key]:.2f}" if health else None)
                for key in ("distinct_2", "repeated")
            ),
        ]

    def _attack_sections(self, attacked: Mapping[str, Mapping[str, Any]]) -> list[Section]:
        clean = next(iter(attacked.values()))["quantisation"]["8"]["nll_clean"]
        header = [
            "method",
            "after the edit",
            "4 bits",
            "8 bits",
            "diluted",
            "clean, diluted",
            "unseen template",
            "recall, unseen",
        ]
        rows, curves = [], {}
        everyone = dict(attacked) | (
            {"reference": self.reference["attacks"]} if self.reference and "attacks" in self.reference else {}
        )
        for method, found in everyone.items():
            relearning = found["relearning"]
            first = next(iter(next(iter(relearning.values())).values()))[0]["nll"]
            unseen = found.get("unseen")
            rows.append(
                [
                    method,
                    *(f"{nll:.3f}" for nll in (first, found["quantisation"]["4"]["nll"], found["quantisation"]["8"]["nll"])),
                    f"{found['dilution']['nll']:.3f}",
                    f"{found['dilution']['nll_clean']:.3f}",
                    f"{unseen['nll']:.3f}" if unseen else None,
                    f"{100 * unseen['exact_recall']:.0f}%" if unseen else None,
                ]
            )
            for variant, by_size in relearning.items():
                largest = list(by_size)[-1]
                label = f"{method}, {variant}" if variant != "weights" else method
                curves[f"{label} ({largest})"] = by_size[largest]
        lead = (
            f"Loss on the forget text in nats per token (seed 0; before unlearning {clean:.3f}; lower means the knowledge is back). Removing the hook gives "
            f"back {clean:.3f} for every edit. Diluted: behind 64 tokens of unrelated text."
        )
        relearn = "Finetuned on forget text by an attacker, with the hook in place or without it while learning; measured with it. In brackets: documents learnt."
        return [
            Section(f"{self.name}: attacks", lead, Table(header, rows)),
            Section(f"{self.name}: relearning", relearn, self._relearning_table(everyone), relearning_curves(curves, clean)),
        ]

    def _relearning_table(self, attacked: Mapping[str, Mapping[str, Any]]) -> Table:
        rows = []
        for method, found in attacked.items():
            for variant, by_size in found["relearning"].items():
                for size, points in by_size.items():
                    rows.append(
                        [
                            method,
                            variant,
                            size,
                            *(f"{point['nll']:.3f}" for point in points),
                            f"{100 * points[-1]['exact_recall']:.0f}%",
                        ]
                    )
        steps = [
            point["step"] for point in next(iter(next(iter(next(iter(attacked.values()))["relearning"].values())).values()))
        ]
        return Table(["method", "attack", "learnt", *(f"step {step}" for step in steps), "exact recall"], rows)


def _interval(estimate: Estimate) -> str:
    return f"{estimate.mean:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def _random(found: AtCost) -> str | None:
    if found.random is None:
        return None
    ratio = found.forget.mean / found.random.mean if found.random.mean > 0 else float("inf")
    return f"{found.random.mean:+.3f} ({ratio:.1f}x)"
