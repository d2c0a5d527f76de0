"""Records of the benchmark: the SAEs, and what every method reaches on every task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from typing_extensions import override

from mtsae_lens.experiments.benchmark.cells import Attacks, ReferenceCell, ScoreStability
from mtsae_lens.experiments.benchmark.summary import AtCost, SeedInterval
from mtsae_lens.records import Record
from mtsae_lens.unlearning.results import FurtherMeasures

_NOT_TASKS = ("saes", "seconds_of_cells", "provenance")
"""Keys of `metrics.json` that are not names of tasks."""


@dataclass(frozen=True, kw_only=True)
class TrainedSAE(Record):
    """What one SAE of the benchmark reaches on held-out text."""

    metrics: dict[str, int | float]
    """SAELens's metrics and those of `evaluate_fidelity`."""
    weights_sha256: str
    """Digest of the file of its weights."""


@dataclass(frozen=True, kw_only=True)
class TaskComparison(Record):
    """What every method reaches on one task."""

    at_cost: dict[str, dict[str, AtCost]]
    """Results by method and key of the budget (`most`, `nearest`)."""
    differences: dict[str, dict[str, SeedInterval]]
    """Nats that MTSAE adds to the forget text minus those of another SAE, by that SAE and key of the budget; empty without an MTSAE."""
    main: dict[str, FurtherMeasures]
    """Further measures of the main setting by method, of the first seed."""
    attacks: dict[str, Attacks]
    """Attacks on the main setting by method, of the first seed."""
    reference: ReferenceCell | None
    """The reference, measured as a changed model; None without one."""
    stability: dict[str, dict[str, ScoreStability]]
    """How reproducible the choice of features is, by architecture and score."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult(Record):
    """What `mtsae unlearn-benchmark` measured. In JSON the tasks stand beside the other entries, not in a separate entry."""

    saes: dict[str, dict[str, int | float]]
    """Fidelity metrics of the SAEs, by `architecture/seed`."""
    seconds_of_cells: float
    """Time of all measurements in one process, without the training of SAEs."""
    tasks: dict[str, TaskComparison]

    @override
    def to_json(self) -> dict[str, Any]:
        content = super().to_json()
        return content | content.pop("tasks")

    @classmethod
    @override
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        tasks = {name: task for name, task in content.items() if name not in _NOT_TASKS}
        return super().from_json({name: content[name] for name in _NOT_TASKS if name in content} | {"tasks": tasks})
