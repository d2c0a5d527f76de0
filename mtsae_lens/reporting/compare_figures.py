"""Draw the figures of the comparison of architectures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mtsae_lens.records import Interval
from mtsae_lens.reporting.figures import PALETTE, error_bars

_SYMBOLS = ("circle", "square", "diamond", "cross")


@dataclass(frozen=True)
class FrontierPoint:
    """One architecture at one sparsity, which is its L0 or its bits per token."""

    name: str
    x: float
    values: Mapping[str, Interval]
    """Mean, smallest and largest over seeds, by metric."""
    is_floor: bool = False
    """Whether the line is hidden until its name is clicked, because it is so far below that the others would fall together."""


def frontier(points: Sequence[FrontierPoint], panels: Mapping[str, str], x_title: str) -> go.Figure:
    """Draw metrics over sparsity, one line per architecture and one panel per metric.

    Args:
        points: the points.
        panels: title of each panel, by metric.
        x_title: what the points are drawn over, on a logarithmic axis.
    """
    n_rows = -(-len(panels) // 2)
    figure = make_subplots(rows=n_rows, cols=2, subplot_titles=list(panels.values()), vertical_spacing=0.14)
    for number, name in enumerate(dict.fromkeys(point.name for point in points)):
        own = sorted((point for point in points if point.name == name), key=lambda point: point.x)
        for place, metric in enumerate(panels):
            shown = [point for point in own if metric in point.values]
            figure.add_scatter(
                x=[point.x for point in shown],
                y=[point.values[metric].mean for point in shown],
                error_y=error_bars([point.values[metric] for point in shown]),
                name=name,
                legendgroup=name,
                showlegend=place == 0,
                visible="legendonly" if any(point.is_floor for point in own) else True,
                mode="lines+markers",
                line={"color": PALETTE[number % len(PALETTE)], "width": 1.6},
                marker={"symbol": _SYMBOLS[number // len(PALETTE) % len(_SYMBOLS)], "size": 8},
                row=place // 2 + 1,
                col=place % 2 + 1,
            )
    figure.update_xaxes(type="log", title_text=x_title)
    figure.update_layout(height=360 * n_rows, legend={"orientation": "h", "y": -0.28 / n_rows})
    return figure
