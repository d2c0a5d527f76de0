"""One task's cells as numbers: every method at every budget, ours beside every other SAE, the edit in full, its attacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from mtsae_lens.experiments.benchmark.arms import BUDGETS, OURS
from mtsae_lens.experiments.benchmark.reading import most, nearest
from mtsae_lens.experiments.benchmark.summary import AtCost, Estimate, at_cost, difference
from mtsae_lens.unlearning.task import Task

READINGS = (*map(nearest, BUDGETS), *map(most, BUDGETS))
Cells = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class TaskResults:
    """What the cells of one task say.

    Args:
        name: of the task; its cells' names begin with it.
        task: its corpora and their roles.
        cells: of all tasks, by name.
        architectures: of the SAEs, in the order in which they are shown.
    """

    name: str
    task: Task
    cells: Cells
    architectures: Sequence[str]

    def _own_cells(self) -> Iterator[tuple[list[str], Mapping[str, Any]]]:
        for cell_name, cell in self.cells.items():
            task_name, *rest = cell_name.split("/")
            if task_name == self.name:
                yield rest, cell

    @cached_property
    def methods(self) -> dict[str, list[Mapping[str, Any]]]:
        """Method -> its result for every seed; SAEs with their gate first, then without, then the others."""
        found: dict[str, list[Mapping[str, Any]]] = {}
        for _, cell in self._own_cells():
            for method, result in cell.get("methods", {}).items():
                found.setdefault(method, []).append(result)
        order = [*self.architectures, *(f"{architecture}, no gate" for architecture in self.architectures)]
        return {m: found[m] for m in sorted(found, key=lambda m: order.index(m) if m in order else len(order))}

    @property
    def reference(self) -> Mapping[str, Any] | None:
        """The cell of the model that never saw the text."""
        return self.cells.get(f"{self.name}/reference")

    @property
    def reference_gap(self) -> float | None:
        """What the model that never saw the text loses more than the clean one, nats per token."""
        return None if self.reference is None else self.reference["corpora"][self.task.forget]["nll_delta"]

    @cached_property
    def test_tokens(self) -> dict[str, int]:
        """Counted tokens of TEST, by source; empty without a result."""
        rows = (row["corpora"] for results in self.methods.values() for result in results for row in result["test"].values())
        return {source: sum(d["n_tokens"] for d in row["documents"]) for source, row in next(rows, {}).items()}

    @property
    def clean_nll(self) -> float:
        """Loss on the forget text before unlearning, nats per token."""
        rows = (row for results in self.methods.values() for result in results for row in result["test"].values())
        return next(rows)["corpora"][self.task.forget]["nll_clean"]

    @cached_property
    def at_cost(self) -> dict[str, dict[str, AtCost]]:
        """Method -> reading -> what it reaches."""
        reference = None if self.reference is None else self.reference["corpora"][self.task.forget]
        return {
            method: {key: found for key in READINGS if (found := at_cost(results, key, self.task, reference)) is not None}
            for method, results in self.methods.items()
        }

    @cached_property
    def differences(self) -> dict[str, dict[str, Estimate]]:
        """Other SAE -> reading -> how much more ours forgets; empty where ours was not run."""
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

    def of_first_seed(self, part: str) -> dict[str, Mapping[str, Any]]:
        """Method -> `main` (the edit measured in full) or `attacks`, where the first seed has it."""
        return {method: results[0][part] for method, results in self.methods.items() if part in results[0]}

    @cached_property
    def stability(self) -> dict[str, Any]:
        """Architecture -> how far the choice of features repeats."""
        found = ((rest, cell) for rest, cell in self._own_cells() if rest[0] == "stability")
        return {rest[1].rsplit("-", 1)[0]: cell["stability"] for rest, cell in found}

    def metrics(self) -> dict[str, Any]:
        """For `metrics.json`."""
        return {
            "at_cost": {m: {key: asdict(found) for key, found in rows.items()} for m, rows in self.at_cost.items()},
            "differences": {o: {key: asdict(found) for key, found in rows.items()} for o, rows in self.differences.items()},
            "main": self.of_first_seed("main"),
            "attacks": self.of_first_seed("attacks"),
            "reference": self.reference,
            "stability": self.stability,
        }
