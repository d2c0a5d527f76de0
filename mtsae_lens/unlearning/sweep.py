"""Many settings on TUNE text, and how one of them is chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mtsae_lens.progress import phase
from mtsae_lens.splice.edits import Edit
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.measures.effects import EditLoss, edit_losses
from mtsae_lens.unlearning.task import SPARED, Task


@dataclass(frozen=True)
class Candidate:
    """An edit and, in words that go into a file, how it was made."""

    setting: dict[str, Any]
    edit: Edit


@dataclass(frozen=True)
class Outcome:
    """What one setting did on TUNE, in nats per counted token; NaN where a loss is no number."""

    setting: dict[str, Any]
    forget: float
    """Added to the loss on the forget text."""
    near: float
    """Added to the loss on the near-retain corpus that lost most; 0 without one."""
    far: float
    """The same for far-retain corpora."""
    forget_nll: float
    """Loss on the forget text afterwards."""


def sweep(lm: HookedLM, task: Task, candidates: Sequence[Candidate]) -> list[Outcome]:
    """The outcome of every candidate; each corpus runs to the hook once, whatever their number."""
    edits = [candidate.edit for candidate in candidates]
    tables = _tables(lm, task)
    n_runs = len(edits) * sum(lm.n_batches(table) for table in tables.values())
    with phase(f"trying {len(edits)} edits on TUNE", "run", n_runs):
        effects = {source: edit_losses(lm, table, edits) for source, table in tables.items()}
    return [
        outcome(task, candidate.setting, {source: of_source[place] for source, of_source in effects.items()})
        for place, candidate in enumerate(candidates)
    ]


def _tables(lm: HookedLM, task: Task) -> Mapping[str, Any]:
    return task.tables("tune", lm.cutter, ("forget", *SPARED))


def outcome(task: Task, setting: dict[str, Any], effects: Mapping[str, EditLoss]) -> Outcome:
    """From the effect on every corpus."""
    worst = {role: _highest([effects[s].nll_delta for s in task.sources(role)]) for role in SPARED}
    forget = effects[task.forget]
    return Outcome(setting, forget.nll_delta, worst["near"], worst["far"], forget.mean(forget.nll_edited))


def _highest(values: Sequence[float]) -> float:
    """0 of none; NaN if one is: `max` alone drops or keeps it by its place."""
    return math.nan if any(map(math.isnan, values)) else max(values, default=0.0)


def outcome_row(outcome: Outcome) -> dict[str, Any]:
    """An outcome as it goes into a file; None for what is no number, which JSON does not have."""
    values = asdict(outcome).items()
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values}


def within_budgets(outcomes: Sequence[Outcome], near_budget: float, far_budget: float) -> list[int]:
    """Places of the settings that cost no more than allowed; one whose losses are no numbers is never among them."""
    return [
        place for place, o in enumerate(outcomes) if o.near <= near_budget and o.far <= far_budget and math.isfinite(o.forget)
    ]


def most_forgetting(outcomes: Sequence[Outcome], places: Sequence[int], max_nll: float) -> int | None:
    """The setting that forgets most without a loss above `max_nll` (guessing every token alike; beyond is damage); None without one."""
    sane = [place for place in places if outcomes[place].forget_nll <= max_nll]
    return max(sane, key=lambda place: outcomes[place].forget, default=None)


def nearest_to(outcomes: Sequence[Outcome], places: Sequence[int], goal: float) -> int | None:
    """The setting whose forgetting is nearest to a goal, such as that of a model that never saw the text."""
    return min(places, key=lambda place: abs(outcomes[place].forget - goal), default=None)
