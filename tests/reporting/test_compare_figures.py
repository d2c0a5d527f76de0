"""Test the figure of a comparison: a line for each name, and floors hidden until they are asked for."""

from __future__ import annotations

from mtsae_lens.records import Interval
from mtsae_lens.reporting.compare_figures import FrontierPoint, frontier


def test_floors_are_hidden_until_their_name_is_clicked() -> None:
    value = {"explained_variance": Interval(0.8, 0.7, 0.9)}
    points = [FrontierPoint("topk", l0, value) for l0 in (32, 8)] + [FrontierPoint("untrained", 8, value, is_floor=True)]
    figure = frontier(points, {"explained_variance": "explained variance"}, "L0")
    assert {trace.name: (tuple(trace.x), trace.visible) for trace in figure.data} == {
        "topk": ((8, 32), True),
        "untrained": ((8,), "legendonly"),
    }
