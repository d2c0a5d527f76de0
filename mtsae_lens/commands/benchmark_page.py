"""From the benchmark's cells to numbers, tables and sections."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mtsae_lens.benchmark.arms import BUDGETS, CONTROL_BUDGETS, MAIN_BUDGET, OURS, BenchmarkTask, Scale
from mtsae_lens.benchmark.reading import most, nearest
from mtsae_lens.benchmark.summary import AtCost, Estimate, at_cost, difference
from mtsae_lens.commands.attacks_page import attack_sections
from mtsae_lens.commands.parts import Part
from mtsae_lens.data.facts import is_fact_source
from mtsae_lens.reporting.benchmark_figures import cost_curves
from mtsae_lens.reporting.page import Section, Table
from mtsae_lens.reporting.samples import sample_table
from mtsae_lens.unlearning.task import Task

_MOST = tuple(map(most, BUDGETS))
_NEAREST = tuple(map(nearest, BUDGETS))
_READINGS = (*_NEAREST, *_MOST)
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
        tables.append(found.cost_table(most if found.reference is None else nearest))
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
        self.stability = {
            cell_name.split("/")[2].rsplit("-", 1)[0]: cell["stability"]
            for cell_name, cell in cells.items()
            if cell_name.startswith(f"{name}/stability/")
        }
        self.others = [architecture for architecture in architectures if architecture != OURS and architecture in self.methods]
        order = [*architectures, *(f"{architecture}, no gate" for architecture in architectures)]
        self.methods = {
            m: self.methods[m] for m in sorted(self.methods, key=lambda m: order.index(m) if m in order else len(order))
        }
        self.at_cost = {
            method: {budget: found for budget in _READINGS if (found := at_cost(results, budget, task)) is not None}
            for method, results in self.methods.items()
        }

    def metrics(self) -> dict[str, Any]:
        """For `metrics.json`."""
        return {
            "at_cost": {m: {b: asdict(found) for b, found in rows.items()} for m, rows in self.at_cost.items()},
            "differences": {
                other: {b: asdict(found) for b in _READINGS if (found := self._difference(other, b)) is not None}
                for other in self.others
            },
            "main": {m: results[0]["main"] for m, results in self.methods.items() if "main" in results[0]},
            "attacks": {m: results[0]["attacks"] for m, results in self.methods.items() if "attacks" in results[0]},
            "reference": self.reference,
            "stability": self.stability,
        }

    def _difference(self, other: str, budget: str) -> Estimate | None:
        return difference(self.methods[OURS], self.methods[other], budget, self.task) if OURS in self.methods else None

    def reference_gap(self) -> float | None:
        """What the model that never saw the text loses more than the clean one."""
        return None if self.reference is None else self.reference["corpora"][self.task.forget]["nll_delta"]

    def _clean_nll(self) -> float:
        """Loss on the forget text before unlearning."""
        rows = (row for results in self.methods.values() for result in results for row in result["test"].values())
        return next(rows)["corpora"][self.task.forget]["nll_clean"]

    def cost_table(self, key: Callable[[float], str]) -> Table:
        """Every method at the budgets at which it was controlled, by one of the two readings."""
        asked = is_fact_source(self.task.forget)
        header = ["method"]
        for budget in CONTROL_BUDGETS:
            header += [f"forget at {budget:g}", *([f"recall at {budget:g}"] if asked else []), f"random at {budget:g}"]
        header += [f"near at {MAIN_BUDGET:g}", f"far at {MAIN_BUDGET:g}", "seeds", "without a setting"]
        return Table(header, [self._cost_row(m, by_key, key, asked=asked) for m, by_key in self.at_cost.items()])

    def _cost_row(self, method: str, found: Mapping[str, AtCost], key: Callable[[float], str], *, asked: bool) -> list[Any]:
        cells: list[Any] = [method]
        for budget in CONTROL_BUDGETS:
            at = found.get(key(budget))
            cells += [_interval(at.forget) if at else None]
            cells += [f"{100 * at.exact_recall:.0f}%" if at else None] if asked else []
            cells += [_random(at) if at else None]
        at = found.get(key(MAIN_BUDGET))
        if at is None:
            return [*cells, None, None, 0, len(self.methods[method])]
        return [*cells, _interval(at.near) if at.near else None, _interval(at.far), at.forget.n_seeds, at.n_missing]

    def corpora_table(self) -> Table:
        """What the setting nearest to the reference did to every other text."""
        shown = {m: found[nearest(MAIN_BUDGET)] for m, found in self.at_cost.items() if nearest(MAIN_BUDGET) in found}
        sources = self.task.sources("near", "far", "neutral")
        header = ["method", *(f"{source} ({self.task.role(source)})" for source in sources)]
        return Table(header, [[m, *(f"{at.corpora[s].mean:+.3f}" for s in sources)] for m, at in shown.items()])

    def sections(self) -> list[Section]:
        """For the page."""
        gap = self.reference_gap()
        curves = {m: [found[key] for key in _MOST if key in found] for m, found in self.at_cost.items()}
        curves = {method: points for method, points in curves.items() if points}
        reference = "" if gap is None else f" The reference, which never saw the text, loses {gap:+.3f}: more is damage."
        units = (
            "Measured on TEST, nats per counted token, 95% intervals over seeds and documents; near and far are the corpora "
            "that lost most. Random: "
            "the same edit of features matched in firing rate and strength, and how many times as much the chosen ones do."
        )
        sections = []
        if gap is not None:
            text = (
                f"Forget {self.task.forget}. The setting whose forgetting on TUNE was nearest to the reference's while no near- "
                f"or far-retain text lost "
                f"more than 0.02 or 0.05 nats.{reference} {units} {_SUPPRESSION}"
            )
            sections.append(
                Section(f"{self.name}: as near to the reference as the price allows", text, self.cost_table(nearest))
            )
            where = f"Changes of every other text at {MAIN_BUDGET:g}; neutral text was never looked at before."
            sections.append(Section(f"{self.name}: where the price is paid", where, self.corpora_table()))
        text = (
            f"Forget {self.task.forget}. The setting that added most to the loss on TUNE at that price, up to that of guessing "
            f"every token alike: how much a "
            f"method can break, not how well it forgets.{reference} {units}"
        )
        sections += [
            Section(
                f"{self.name}: the most at the price",
                text,
                self.cost_table(most),
                cost_curves(curves, gap, "near") if self.task.sources("near") else None,
            ),
            Section(f"{self.name}: against far-retain text", figure=cost_curves(curves, gap, "far")),
            Section(
                f"{self.name}: {OURS} less every other SAE",
                "Paired by seed and document; above 0, ours forgets more.",
                self._differences(),
            ),
        ]
        mains = {method: results[0]["main"] for method, results in self.methods.items() if "main" in results[0]}
        if mains:
            sections.append(self._main_section(mains))
        attacked = {method: results[0]["attacks"] for method, results in self.methods.items() if "attacks" in results[0]}
        if attacked:
            sections += attack_sections(self.name, attacked, self.reference, self._clean_nll())
        if self.stability:
            sections.append(self._stability_section())
        if OURS in mains and mains[OURS]["samples"]:
            lead = f"Greedy continuations of held-out text, before and after the edit with {OURS} (seed 0)."
            sections.append(Section(f"{self.name}: samples", lead, html=sample_table(mains[OURS]["samples"])))
        return sections

    def _stability_section(self) -> Section:
        text = (
            "The first features of a score. Halves: Jaccard overlap of the choices from two halves of the documents (seed "
            "0), and what chance gives. Seeds: "
            "mean over pairs of seeds of the best cosine between decoder rows of chosen features, and of random ones."
        )
        rows = [
            [
                architecture,
                score,
                found["n_features"],
                f"{found['halves']:.2f}" if found["halves"] is not None else None,
                f"{found['chance']:.3f}",
                f"{found['seeds']['cosine']:.2f}" if found["seeds"] else None,
                f"{found['seeds']['chance']:.2f}" if found["seeds"] else None,
            ]
            for architecture, scores in self.stability.items()
            for score, found in scores.items()
        ]
        header = ["SAE", "score", "features", "halves", "chance", "seeds", "random features"]
        return Section(f"{self.name}: stability of the choice", text, Table(header, rows))

    def _differences(self) -> Table:
        rows = []
        for other in self.others:
            for budget in _READINGS:
                found = self._difference(other, budget)
                if found is not None:
                    rows.append([other, budget, _interval(found), found.n_seeds])
        return Table(["SAE", "reading", "difference", "seeds"], rows)

    def _main_section(self, mains: Mapping[str, Mapping[str, Any]]) -> Section:
        """The setting nearest to the reference, in full."""
        text = (
            f"Of seed 0, the setting within {MAIN_BUDGET:g} nats whose forgetting on TUNE is nearest to the reference's. "
            f"Gap: its loss less the "
            "reference's (0 is best; above is damage). Calibrated: nats added after an output bias was refitted, so that "
            "shifted logits do not count. "
            "KS: distance between the two models' losses per document (0: indistinguishable). Gate: share of forget positions "
            "at which it is open, and its "
            "AUROC against the near text (chance 0.5). Distinct-2 and repeated 4-grams of greedy text on the forget prompts, "
            "before -> after."
        )
        header = ["method", "gap", "KS", "calibrated", "gate open", "gate AUROC", "distinct-2", "repeated"]
        return Section(
            f"{self.name}: beside the reference", text, Table(header, [self._main_row(m, g) for m, g in mains.items()])
        )

    def _main_row(self, method: str, main: Mapping[str, Any]) -> list[Any]:
        reference, gate = main.get("reference"), main.get("gate")
        health = main["generation"].get(self.task.forget)
        near = next(iter(gate["others"].values())) if gate else None
        return [
            method,
            f"{reference['nll_gap']:+.3f}" if reference else None,
            f"{reference['documents']['ks']:.2f}" if reference else None,
            f"{main['calibrated_nll_delta']:+.3f}",
            f"{100 * gate['true_positives']['positions']:.0f}%" if gate else None,
            f"{near['by_position'][0]['auroc']:.3f}" if near else None,
            *(
                (f"{health['clean'][key]:.2f} -> {health['edited'][key]:.2f}" if health else None)
                for key in ("distinct_2", "repeated")
            ),
        ]


def _interval(estimate: Estimate) -> str:
    return f"{estimate.mean:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def _random(found: AtCost) -> str | None:
    if found.random is None:
        return None
    ratio = found.forget.mean / found.random.mean if found.random.mean > 0 else float("inf")
    return f"{found.random.mean:+.3f} ({ratio:.1f}x)"
