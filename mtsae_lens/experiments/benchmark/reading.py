"""Choose which settings of a sweep on TUNE are measured on TEST, by the same rule for every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mtsae_lens.experiments.benchmark.arms import BUDGETS, MAIN_BUDGET
from mtsae_lens.unlearning.sweep import Outcome, most_forgetting, nearest_to, within_budgets


def read_sweep(outcomes: Sequence[Outcome], max_nll: float, goal: float | None) -> dict[str, int]:
    """Choose the settings to measure on TEST, two for each budget; a budget that no setting meets is left out.

    `0.05` is the setting with the most forgetting within 0.05 nats. `0.05 goal` is the setting whose forgetting is nearest to the
    reference's; more is damage. The first shows how much a method can break at that cost, the second how well it forgets. Without a
    reference there is only the first.

    Args:
        outcomes: outcomes of one method on TUNE.
        max_nll: forget loss above which there is only damage, in nats per token.
        goal: increase of the reference's loss over the clean model's, in nats per token; None without a reference.

    Returns:
        Indices into `outcomes`, by key.
    """
    places: dict[str, int | None] = {}
    for budget in BUDGETS:
        within = within_budgets(outcomes, budget, budget)
        places[most(budget)] = most_forgetting(outcomes, within, max_nll)
        if goal is not None:
            places[nearest(budget)] = nearest_to(outcomes, within, goal)
    return {name: place for name, place in places.items() if place is not None}


def most(budget: float) -> str:
    """Return the key of the setting with the most forgetting within a budget.

    Args:
        budget: the budget, in nats per token.
    """
    return f"{budget:g}"


def nearest(budget: float) -> str:
    """Return the key of the setting within a budget whose forgetting is nearest to the reference's.

    Args:
        budget: the budget, in nats per token.
    """
    return f"{budget:g} goal"


def find_main_place(places: Mapping[str, int]) -> int | None:
    """Return the index of the one setting that is measured in full and attacked; None if there is none.

    Args:
        places: indices of the chosen settings, by key.
    """
    return places.get(nearest(MAIN_BUDGET), places.get(most(MAIN_BUDGET)))
