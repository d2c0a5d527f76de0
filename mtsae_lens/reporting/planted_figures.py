"""Draw the figures of the experiments on planted sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from mtsae_lens.records import Interval
from mtsae_lens.reporting.figures import PALETTE, error_bars

_ORACLE = "#808898"


def recovery_bars(
    scores: Mapping[str, Mapping[str, Interval]], references: Mapping[str, Mapping[str, float]], axis_title: str
) -> go.Figure:
    """Draw a bar per class and architecture with its 95% interval; each reference is a dash over every class.

    Args:
        scores: intervals by architecture and class.
        references: values by name and class.
        axis_title: name of the score.
    """
    figure = go.Figure()
    for number, (name, by_class) in enumerate(scores.items()):
        estimates = list(by_class.values())
        figure.add_bar(
            name=name,
            x=list(by_class),
            y=[e.mean for e in estimates],
            marker_color=PALETTE[number % len(PALETTE)],
            error_y=error_bars(estimates, thickness=1, width=2),
        )
    for number, (name, values) in enumerate(references.items()):
        marker = {"symbol": "line-ew", "size": 44, "line": {"color": _ORACLE, "width": 3 - number}}
        figure.add_scatter(name=name, x=list(values), y=list(values.values()), mode="markers", marker=marker)
    figure.update_layout(
        barmode="group", height=440, yaxis_title=axis_title, yaxis_range=[0, 1], legend={"orientation": "h", "y": -0.3}
    )
    return figure


def profile_heatmap(profiles: Mapping[str, Sequence[float]], offsets: Sequence[int]) -> go.Figure:
    """Draw the share of every offset except a feature's own position, one row per class.

    Args:
        profiles: shares of the offsets, by class.
        offsets: the offsets.
    """
    others = [place for place, offset in enumerate(offsets) if offset != 0]
    z = [[row[place] for place in others] for row in profiles.values()]
    figure = go.Figure(
        go.Heatmap(
            z=z,
            x=[str(offsets[place]) for place in others],
            y=list(profiles),
            colorscale="Blues",
            zmin=0,
            text=[[f"{value:z.3f}" for value in row] for row in z],  # z: no "-0.000"
            texttemplate="%{text}",
            colorbar={"title": "share"},
        )
    )
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(type="category")
    figure.update_layout(height=90 + 34 * len(profiles), xaxis_title="position read, relative to the feature's own")
    return figure


def strength_curves(curves: Mapping[str, Mapping[float, Interval]], axis_title: str) -> go.Figure:
    """Draw a line per method over the magnitude of the echo, with its 95% interval.

    Args:
        curves: intervals by method and magnitude.
        axis_title: name of the score.
    """
    figure = go.Figure()
    for number, (name, points) in enumerate(curves.items()):
        estimates = list(points.values())
        figure.add_scatter(
            name=name,
            x=list(points),
            y=[e.mean for e in estimates],
            mode="lines+markers",
            line={"color": PALETTE[number % len(PALETTE)], "width": 1.8},
            error_y=error_bars(estimates),
        )
    figure.update_layout(
        height=360, xaxis_title="magnitude of the echo", yaxis_title=axis_title, legend={"orientation": "h", "y": -0.25}
    )
    return figure
