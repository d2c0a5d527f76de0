"""Draw the figures of the paper's reproduction, with every seed and the mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mtsae_lens.reporting.figures import PALETTE

_PUBLISHED = "#ef4444"


def step_curves(curves: Mapping[str, Mapping[str, Sequence[float]]], titles: Mapping[str, str]) -> go.Figure:
    """Draw one panel per quantity over training steps, one line per seed (figure 1a).

    Args:
        curves: one value per step, by seed and quantity; `step` holds the steps.
        titles: titles of the panels, by quantity.
    """
    n_columns = 3
    figure = make_subplots(
        rows=-(-len(titles) // n_columns), cols=n_columns, subplot_titles=list(titles.values()), vertical_spacing=0.17
    )
    for number, (seed, values) in enumerate(curves.items()):
        for place, key in enumerate(titles):
            figure.add_scatter(
                x=list(values["step"]),
                y=list(values[key]),
                name=seed,
                legendgroup=seed,
                showlegend=place == 0,
                mode="lines+markers",
                line={"color": PALETTE[number % len(PALETTE)], "width": 1.4},
                row=place // n_columns + 1,
                col=place % n_columns + 1,
            )
    figure.update_xaxes(dtick=1, title_text="step")
    figure.update_yaxes(exponentformat="e")
    figure.update_layout(height=300 * -(-len(titles) // n_columns), legend={"orientation": "h", "y": -0.15})
    return figure


def seed_panels(
    values: Mapping[str, Mapping[str, Sequence[float | None]]], titles: Mapping[str, str], published: Mapping[str, float]
) -> go.Figure:
    """Draw one panel per metric and one column per group, with a point per seed and a dash at the mean; dashed lines are the paper's
    values.

    Args:
        values: one value per seed, by group and metric.
        titles: titles of the panels, by metric.
        published: the paper's values, by metric.
    """
    n_columns = min(4, len(titles))
    n_rows = -(-len(titles) // n_columns)
    figure = make_subplots(rows=n_rows, cols=n_columns, subplot_titles=list(titles.values()), vertical_spacing=0.36 / n_rows)
    for place, metric in enumerate(titles):
        row, col = place // n_columns + 1, place % n_columns + 1
        for number, (group, metrics) in enumerate(values.items()):
            known = [value for value in metrics.get(metric, ()) if value is not None]
            color = PALETTE[number % len(PALETTE)]
            marker = {"color": color, "size": 7, "opacity": 0.65}
            figure.add_scatter(
                x=[group] * len(known), y=known, mode="markers", marker=marker, showlegend=False, row=row, col=col
            )
            if known:
                dash = {"symbol": "line-ew", "size": 22, "line": {"color": color, "width": 3}}
                mean = sum(known) / len(known)
                figure.add_scatter(x=[group], y=[mean], mode="markers", marker=dash, showlegend=False, row=row, col=col)
        if metric in published:
            figure.add_hline(y=published[metric], line_dash="dash", line_color=_PUBLISHED, row=row, col=col)
    figure.update_yaxes(tickformat=".3~g")
    figure.update_layout(height=max(330, 290 * n_rows))
    return figure


def null_histogram(ratios: Mapping[str, Sequence[float]], published: float, ours: Mapping[str, Sequence[float]]) -> go.Figure:
    """Draw the ratio of the standard deviations at the largest and the smallest dilation, for untrained taps; lines are the paper's
    ratio and ours.

    Args:
        ratios: one ratio per draw, by padding.
        published: the paper's ratio.
        ours: ratios of trained seeds, by padding.
    """
    figure = make_subplots(
        rows=1, cols=len(ratios), subplot_titles=[f"{name} padding, untrained taps" for name in ratios], shared_xaxes="all"
    )
    for number, (name, values) in enumerate(ratios.items(), 1):
        color = PALETTE[(number - 1) % len(PALETTE)]
        figure.add_histogram(
            x=values, nbinsx=60, histnorm="probability", marker_color=color, showlegend=False, row=1, col=number
        )
        for value in ours.get(name, ()):
            figure.add_vline(x=value, line_dash="dot", line_color="#808898", line_width=1.5, row=1, col=number)
        figure.add_vline(x=published, line_dash="dash", line_color=_PUBLISHED, annotation_text="paper", row=1, col=number)
    figure.update_xaxes(title_text="deviation at dilation 8 / at dilation 1")
    figure.update_yaxes(title_text="share of draws", col=1)
    figure.update_layout(height=360)
    return figure


def gradient_norms(norms: Mapping[str, Sequence[float]], published: tuple[float, float]) -> go.Figure:
    """Draw the gradient norm of each batch, one line per run; the band is the paper's range.

    Args:
        norms: one norm per batch, by run.
        published: the paper's range.
    """
    figure = go.Figure()
    for number, (name, values) in enumerate(norms.items()):
        figure.add_scatter(
            x=list(range(1, len(values) + 1)),
            y=list(values),
            name=name,
            mode="lines+markers",
            marker={"size": 9 if number else 5, "symbol": "x" if number else "circle"},
            line={"color": PALETTE[number % len(PALETTE)], "width": 1.4},
        )
    figure.add_hrect(y0=published[0], y1=published[1], fillcolor=_PUBLISHED, opacity=0.2, line_width=0)
    figure.update_layout(
        height=340, xaxis_title="batch", yaxis_title="gradient norm", yaxis_type="log", legend={"orientation": "h", "y": -0.25}
    )
    return figure
