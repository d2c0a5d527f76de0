"""Test that figures hold the given numbers, intervals included."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import plotly.graph_objects as go
import pytest

from mtsae_lens.records import Interval
from mtsae_lens.reporting.benchmark_figures import cost_curves
from mtsae_lens.reporting.figures import LEAST_COST, effect_bars, firing_curves, sweep_scatter
from mtsae_lens.reporting.planted_figures import recovery_bars, strength_curves


@dataclass(frozen=True)
class Point:
    forget: Interval
    near: Interval
    far: Interval


@dataclass(frozen=True)
class Tried:
    forget: float
    near: float
    far: float
    setting: dict[str, int] = field(default_factory=dict)


def interval(trace: go.Bar | go.Scatter, axis: str = "y") -> list[tuple[float, float, float]]:
    """Low, value and high of every point."""
    bars, values = trace[f"error_{axis}"], trace[axis]
    return [(v - low, v, v + high) for v, low, high in zip(values, bars.arrayminus, bars.array, strict=True)]


def test_effects_have_the_interval_that_they_came_with() -> None:
    documents = {"a": Interval(1.0, 0.8, 1.5)}
    draws = {"a": Interval(0.2, -0.1, 0.3)}
    edit, random = effect_bars({"edit": documents, "random": draws}).data
    assert (edit.name, interval(edit)) == ("edit", [pytest.approx((0.8, 1.0, 1.5))])
    assert (random.name, interval(random)) == ("random", [pytest.approx((-0.1, 0.2, 0.3))])


def test_text_to_keep_has_a_scale_of_its_own() -> None:
    """Else the price, a thousandth of what is forgotten, cannot be seen."""
    rows = {name: Interval(value, value, value) for name, value in (("a", 1.0), ("b", 0.001))}
    figure = effect_bars({"edit": rows, "random": rows}, ["a"])
    assert [(bar.name, bar.x, bar.y, bar.yaxis) for bar in figure.data] == [
        ("edit", ("a",), (1.0,), "y"),
        ("edit", ("b",), (0.001,), "y2"),
        ("random", ("a",), (1.0,), "y"),
        ("random", ("b",), (0.001,), "y2"),
    ]
    assert [bar.showlegend for bar in figure.data] == [True, False, True, False]
    assert figure.layout.yaxis2.matches is None


def test_settings_that_cost_next_to_nothing_are_told_apart() -> None:
    sweep = [Tried(1.0, near, math.nan) for near in (-0.01, 0.001, 0.1)]
    figure = sweep_scatter(sweep, {"near": 0.3, "far": 0.4})
    assert figure.layout.xaxis.type == "log"
    assert [trace.x for trace in figure.data] == [(LEAST_COST, 0.001, 0.1), (None, None, None)]
    assert "near -0.01" in figure.data[0].text[0]


def test_the_sweep_stands_by_cost_and_gain_with_its_budgets() -> None:
    sweep = [Tried(1.0, 0.1, 0.2, {"n_features": 8})]
    figure = sweep_scatter(sweep, {"near": 0.3, "far": 0.4})
    assert [(trace.x, trace.y) for trace in figure.data] == [((0.1,), (1.0,)), ((0.2,), (1.0,))]
    assert [line.x0 for line in figure.layout.shapes] == [0.3, 0.4]


@pytest.mark.parametrize("cost", ["near", "far"])
def test_cost_curves(cost: str) -> None:
    point = Point(Interval(1.0, 0.5, 2.0), Interval(0.1, 0.0, 0.3), Interval(0.2, 0.15, 0.6))
    figure = cost_curves({"ours": [point]}, 1.5, cost)
    (curve,) = figure.data
    assert interval(curve) == [pytest.approx((0.5, 1.0, 2.0))]
    expected = getattr(point, cost)
    assert interval(curve, "x") == [pytest.approx((expected.low, expected.mean, expected.high))]
    assert figure.layout.shapes[0].y0 == 1.5


def test_planted_figures() -> None:
    found = {"ours": {"lag 4": Interval(0.7, 0.6, 0.75)}}
    bars, reference = recovery_bars(found, {"oracle": {"lag 4": 0.9}}, "F1").data
    assert interval(bars) == [pytest.approx((0.6, 0.7, 0.75))]
    assert (reference.x, reference.y) == (("lag 4",), (0.9,))
    (curve,) = strength_curves({"ours": {0.5: Interval(0.3, 0.1, 0.4)}}, "F1").data
    assert (curve.x, interval(curve)) == ((0.5,), [pytest.approx((0.1, 0.3, 0.4))])


def test_firing_curves_leave_out_what_is_not_known() -> None:
    figure = firing_curves([1, 2], {"features": [0.3, math.nan], "control": [0.1, 0.0]}, [0, 8], {"50%": [1.5, 0.5]})
    assert [(line.name, line.y, line.line.dash) for line in figure.data] == [
        ("features", (0.3, None), "solid"),
        ("control", (0.1, 0.0), "dash"),
        ("50% of features", (1.5, 0.5), None),
    ]
