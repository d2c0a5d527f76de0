"""From a sweep on TUNE to what is measured on TEST: the same reading for every method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mtsae_lens.benchmark.arms import BUDGETS, GOAL_BUDGET
from mtsae_lens.unlearning.sweep import Outcome, most_forgetting, nearest_to, within_budgets


def read_sweep(outcomes: Sequence[Outcome], max_nll: float, goal: float | None) -> dict[str, int]:
    """Places of the settings to measure on TEST: the most forgetting within each budget (keys `0.01`, ...), and `goal`, the nearest to the
    reference's forgetting within `GOAL_BUDGET` (without a reference, the most forgetting). A budget that no setting meets is left out.

    Args:
        outcomes: of one method, on TUNE.
        max_nll: forget loss beyond which there is only damage, nats per token.
        goal: what the reference loses more than the clean model, nats per token; None without a reference.
    """
    places = {f"{budget:g}": most_forgetting(outcomes, within_budgets(outcomes, budget, budget), max_nll) for budget in BUDGETS}
    within = within_budgets(outcomes, GOAL_BUDGET, GOAL_BUDGET)
    places["goal"] = most_forgetting(outcomes, within, max_nll) if goal is None else nearest_to(outcomes, within, goal)
    return {name: place for name, place in places.items() if place is not None}


def tune_rows(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """The sweep as it goes into a file."""
    return [asdict(outcome) for outcome in outcomes]
