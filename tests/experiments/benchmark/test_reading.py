"""Test which settings of a sweep are measured: two for each budget."""

from __future__ import annotations

from mtsae_lens.experiments.benchmark.arms import BUDGETS, MAIN_BUDGET
from mtsae_lens.experiments.benchmark.reading import find_main_place, most, nearest, read_sweep
from mtsae_lens.unlearning.sweep import Outcome


def found(*rows: tuple[float, float, float]) -> list[Outcome]:
    """`(forget, near, far)` on a clean loss of 4."""
    return [Outcome({"place": i}, forget, near, far, 4 + forget) for i, (forget, near, far) in enumerate(rows)]


SWEEP = found(
    (0.1, 0.0, 0.005),
    (0.5, 0.015, 0.0),
    (0.4, 0.01, 0.03),
    (0.9, 0.04, 0.01),
    (1.5, 0.06, 0.08),
    (9.0, 0.03, 0.03),  # damage
    (3.0, 0.0, 0.11),
)


def test_each_budget_has_the_most_forgetting_setting_within_it() -> None:
    places = read_sweep(SWEEP, max_nll=8.3, goal=0.45)
    assert {budget: places[most(budget)] for budget in BUDGETS} == {0.01: 0, 0.02: 1, 0.05: 3, 0.1: 4}
    assert list(map(most, BUDGETS)) == ["0.01", "0.02", "0.05", "0.1"]
    assert read_sweep(SWEEP, max_nll=20.0, goal=0.45)["0.05"] == 5


def test_and_the_one_nearest_to_the_reference() -> None:
    assert MAIN_BUDGET == 0.05
    expected = {0.0: 0, 0.44: 2, 0.46: 1, 0.8: 3, 1.5: 3, 8.0: 5}
    assert {goal: read_sweep(SWEEP, 8.3, goal)[nearest(0.05)] for goal in expected} == expected
    assert read_sweep(SWEEP, 8.3, 0.44)[nearest(0.02)] == 1
    assert read_sweep(SWEEP, 8.3, 8.0)[nearest(0.01)] == 0


def test_the_main_one_is_nearest_to_the_reference_or_without_one_forgets_most() -> None:
    assert find_main_place(read_sweep(SWEEP, 8.3, 0.46)) == 1
    assert find_main_place(read_sweep(SWEEP, 8.3, None)) == 3
    assert find_main_place(read_sweep(SWEEP[::-1], 8.3, None)) == 3
    assert find_main_place(read_sweep([], 8.3, None)) is None
    assert not any("goal" in name for name in read_sweep(SWEEP, 8.3, None))


def test_a_budget_that_no_setting_meets_is_left_out() -> None:
    assert read_sweep(found((1.0, 0.03, 0.0)), 8.3, 1.0) == {"0.05": 0, "0.1": 0, "0.05 goal": 0, "0.1 goal": 0}
    assert read_sweep(found((1.0, 0.0, 0.06)), 8.3, 1.0) == {"0.1": 0, "0.1 goal": 0}
    assert read_sweep(found((9.0, 0.0, 0.0)), 8.3, None) == {}
    for goal in (1.0, None):
        assert read_sweep([], 8.3, goal) == {}
