"""Summarize the cells of one task: every method at every budget, MTSAE compared with every other SAE, the main edit in full, its
attacks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from mtsae_lens.experiments.benchmark.arms import BUDGETS, OURS
from mtsae_lens.experiments.benchmark.cells import (
    Attacks,
    Cell,
    MeasuredCorpus,
    MethodResult,
    MethodsCell,
    ReferenceCell,
    ScoreStability,
    StabilityCell,
)
from mtsae_lens.experiments.benchmark.reading import most, nearest
from mtsae_lens.experiments.benchmark.results import TaskComparison
from mtsae_lens.experiments.benchmark.summary import AtCost, SeedInterval, at_cost, difference
from mtsae_lens.unlearning.results import FurtherMeasures
from mtsae_lens.unlearning.task import Task

READINGS = (*map(nearest, BUDGETS), *map(most, BUDGETS))


@dataclass(frozen=True)
class TaskResults:
    """The summarized cells of one task.

    Args:
        name: name of the task; the names of its cells begin with it.
        task: its corpora and their roles.
        cells: cells of all tasks, by name.
        architectures: names of the SAEs, in the order in which they are shown.
    """

    name: str
    task: Task
    cells: Mapping[str, Cell]
    architectures: Sequence[str]

    def _own_cells(self) -> Iterator[tuple[list[str], Cell]]:
        for cell_name, cell in self.cells.items():
            task_name, *rest = cell_name.split("/")
            if task_name == self.name:
                yield rest, cell

    @cached_property
    def methods(self) -> dict[str, list[MethodResult]]:
        """Return the results of every method, one per seed: SAEs with their gate first, then SAEs without, then the others."""
        found: dict[str, list[MethodResult]] = {}
        for _, cell in self._own_cells():
            if isinstance(cell, MethodsCell):
                for method, result in cell.methods.items():
                    found.setdefault(method, []).append(result)
        order = [*self.architectures, *(f"{architecture}, no gate" for architecture in self.architectures)]
        return {m: found[m] for m in sorted(found, key=lambda m: order.index(m) if m in order else len(order))}

    @cached_property
    def reference(self) -> ReferenceCell | None:
        """Return the cell of the reference; None without one."""
        return next((cell for _, cell in self._own_cells() if isinstance(cell, ReferenceCell)), None)

    @property
    def _reference_effect(self) -> MeasuredCorpus | None:
        return None if self.reference is None else self.reference.corpora[self.task.forget]

    @property
    def reference_gap(self) -> float | None:
        """Return the increase of the reference's loss on the forget text over the clean model's, in nats per token; None without a
        reference.
        """
        return None if self._reference_effect is None else self._reference_effect.nll_delta

    def _tested(self) -> Iterator[dict[str, MeasuredCorpus]]:
        return (row.corpora for results in self.methods.values() for result in results for row in result.test.values())

    @cached_property
    def test_tokens(self) -> dict[str, int]:
        """Return the number of counted tokens of TEST by source; empty if there is no result."""
        corpora = next(self._tested(), {})
        return {source: sum(d.n_tokens for d in measured.documents) for source, measured in corpora.items()}

    @property
    def clean_nll(self) -> float:
        """Return the loss on the forget text before unlearning, in nats per token."""
        return next(self._tested())[self.task.forget].nll_clean

    @cached_property
    def at_cost(self) -> dict[str, dict[str, AtCost]]:
        """Return what each method reaches at each budget: method -> key of the budget -> result."""
        return {
            method: {
                key: found
                for key in READINGS
                if (found := at_cost(results, key, self.task, self._reference_effect)) is not None
            }
            for method, results in self.methods.items()
        }

    @cached_property
    def differences(self) -> dict[str, dict[str, SeedInterval]]:
        """Return how much more MTSAE forgets than each other SAE: other SAE -> key of the budget -> difference. Empty if MTSAE was not
        run.
        """
        if OURS not in self.methods:
            return {}
        others = [architecture for architecture in self.architectures if architecture != OURS and architecture in self.methods]
        return {
            other: {
                key: found
                for key in READINGS
                if (found := difference(self.methods[OURS], self.methods[other], key, self.task)) is not None
            }
            for other in others
        }

    @property
    def mains(self) -> dict[str, FurtherMeasures]:
        """Return further measures of the main setting by method, if the first seed has them."""
        return {method: results[0].main for method, results in self.methods.items() if results[0].main is not None}

    @property
    def attacks(self) -> dict[str, Attacks]:
        """Return attacks on the main setting by method, if the first seed has them."""
        return {method: results[0].attacks for method, results in self.methods.items() if results[0].attacks is not None}

    @cached_property
    def stability(self) -> dict[str, dict[str, ScoreStability]]:
        """Return how reproducible the choice of features is, by architecture and score."""
        found = ((rest, cell) for rest, cell in self._own_cells() if isinstance(cell, StabilityCell))
        return {rest[1].rsplit("-", 1)[0]: cell.stability for rest, cell in found}

    def comparison(self) -> TaskComparison:
        """Return the summary as a record."""
        return TaskComparison(
            at_cost=self.at_cost,
            differences=self.differences,
            main=self.mains,
            attacks=self.attacks,
            reference=self.reference,
            stability=self.stability,
        )
