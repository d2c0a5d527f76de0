"""The search for a sparsity coefficient, and the choice among trainings."""

import math
from collections.abc import Callable

import pytest

from mtsae_lens.experiments.compare.search import Trained, closest, next_coefficient, rank_lrs


def trained(l0: float, *, coefficient: float | None = None, lr: float = 1e-3, ev: float = 0.5, failed: str = "") -> Trained:
    return Trained(lr=lr, coefficient=coefficient, l0=l0, explained_variance=ev, seconds=1.0, failed=failed)


CURVES: dict[str, Callable[[float], float]] = {
    "power law": lambda c: 20 * c**-0.7,
    "steep": lambda c: 20 * c**-3,
    "flat": lambda c: 20 * c**-0.3,
    "saturating": lambda c: 400 / (1 + 10 * c),
    "falls off a cliff": lambda c: 60 if c < 2.5 else 0.0 if c > 4 else 60 * (4 - c) / 1.5,
}


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("target", [8, 32])
def test_the_coefficient_reaches_the_wanted_l0(curve: str, target: int) -> None:
    tried: list[Trained] = []
    while (coefficient := next_coefficient(tried, target, 0.05, 1.0)) is not None:
        tried.append(trained(CURVES[curve](coefficient), coefficient=coefficient))
        assert len(tried) <= (12 if "cliff" in curve else 5)
    assert closest(tried, target).l0 == pytest.approx(target, rel=0.051)


def test_the_search_ends_where_nothing_new_can_be_tried() -> None:
    assert next_coefficient([trained(8.1, coefficient=1.0)], 8, 0.05, 1.0) is None
    jump = [trained(100, coefficient=1.0), trained(1.0, coefficient=1.01)]  # three digits resolve nothing between
    assert next_coefficient(jump, 10, 0.05, 1.0) is None
    assert next_coefficient([trained(math.nan, coefficient=1.0, failed="the loss is nan")], 8, 0.05, 1.0) is None


def test_l0_that_rises_with_the_coefficient_does_not_turn_the_search_around() -> None:
    tried = [trained(20.0, coefficient=1.0), trained(25.0, coefficient=2.0)]
    found = next_coefficient(tried, 8, 0.05, 1.0)
    assert found is not None
    assert found > 1.0


def test_the_learning_rate_is_chosen_among_those_with_the_wanted_l0() -> None:
    by_lr = [
        [trained(8.0, coefficient=2.0, lr=1e-3, ev=0.70), trained(20.0, coefficient=1.0, lr=1e-3, ev=0.90)],
        [trained(8.2, coefficient=3.0, lr=2e-3, ev=0.72)],
        [trained(12.0, coefficient=3.0, lr=4e-3, ev=0.80)],
    ]
    assert [t.lr for t in rank_lrs(by_lr, 8, 0.05)] == [2e-3, 1e-3]
    assert [t.lr for t in rank_lrs(by_lr[2:], 8, 0.05)] == [4e-3]  # nothing else is there
    failed = [[trained(math.nan, lr=8e-3, ev=math.nan, failed="the loss is nan")], [trained(6.0, lr=1e-3, ev=0.1)]]
    assert [t.lr for t in rank_lrs(failed, 8, 0.05)] == [1e-3]  # k is a setting, so its L0 counts as reached
