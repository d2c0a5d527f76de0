"""Figures from plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

PALETTE = ("#2563eb", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#06b6d4", "#84cc16", "#ec4899")
_CURVES = (
    ("metrics/explained_variance", "explained variance"),
    ("losses/overall_loss", "loss"),
    ("metrics/l0", "L0"),
    ("sparsity/dead_features", "dead features"),
)


def error_bars(values: Sequence[float], lows: Sequence[float], highs: Sequence[float], **style: Any) -> dict[str, Any]:
    """Bars from low to high around each value, as plotly takes them: as distances from it."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - value for value, high in zip(values, highs, strict=True)],
        "arrayminus": [value - low for value, low in zip(values, lows, strict=True)],
    } | style


def estimate_bars(estimates: Sequence[Any], **style: Any) -> dict[str, Any]:
    """The same of estimates with `mean`, `low`, `high`."""
    return error_bars([e.mean for e in estimates], [e.low for e in estimates], [e.high for e in estimates], **style)


def training_curves(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> go.Figure:
    """Explained variance, loss, L0 and dead features over steps, one line per training run."""
    figure = make_subplots(rows=2, cols=2, subplot_titles=[title for _, title in _CURVES], vertical_spacing=0.16)
    for number, (name, rows) in enumerate(logs.items()):
        for place, (key, _) in enumerate(_CURVES):
            figure.add_scatter(
                x=[row["step"] for row in rows],
                y=[row[key] for row in rows],
                name=name,
                legendgroup=name,
                showlegend=place == 0,
                line={"color": PALETTE[number % len(PALETTE)], "width": 1.6},
                row=place // 2 + 1,
                col=place % 2 + 1,
            )
    # the first steps overshoot so far that nothing else would be visible
    figure.update_yaxes(range=[-0.2, 1.0], row=1, col=1)
    figure.update_yaxes(type="log", row=1, col=2)
    figure.update_layout(height=560, legend={"orientation": "h", "y": -0.1})
    return figure


def scale_curves(rows: Sequence[Mapping[str, Any]], dilations: Sequence[int]) -> go.Figure:
    """How much weight the encoder gives each time scale, over steps."""
    figure = go.Figure()
    for number, dilation in enumerate(dilations):
        key = f"metrics/scale_{dilation}_encoder_norm"
        figure.add_scatter(
            x=[row["step"] for row in rows],
            y=[row[key] for row in rows],
            name=f"dilation {dilation}",
            line={"color": PALETTE[number % len(PALETTE)], "width": 1.6},
        )
    figure.update_layout(height=340, xaxis_title="step", yaxis_title="norm of the scale's encoder rows")
    return figure


def effect_bars(effects: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> go.Figure:
    """Nats added per token, by corpus and method; bars are 95% intervals where a row has them, else from the least to the most draw."""
    figure = go.Figure()
    for number, (method, corpora) in enumerate(effects.items()):
        values = list(corpora.values())
        low, high = ("nll_delta_low", "nll_delta_high") if "nll_delta_low" in values[0] else ("nll_delta_min", "nll_delta_max")
        deltas = [row["nll_delta"] for row in values]
        figure.add_bar(
            name=method,
            x=list(corpora),
            y=deltas,
            marker_color=PALETTE[number % len(PALETTE)],
            error_y=error_bars(deltas, [row[low] for row in values], [row[high] for row in values]),
        )
    figure.update_layout(
        barmode="group", height=420, yaxis_title="nats added per token", legend={"orientation": "h", "y": -0.2}
    )
    return figure


def sweep_scatter(sweep: Sequence[Mapping[str, Any]], budgets: Mapping[str, float]) -> go.Figure:
    """Forgetting against cost, one point per setting tried on TUNE; dashed lines are the budgets."""
    figure = go.Figure()
    for number, role in enumerate(("near", "far")):
        figure.add_scatter(
            x=[row[role] for row in sweep],
            y=[row["forget"] for row in sweep],
            mode="markers",
            name=f"worst {role}-retain",
            text=[", ".join(f"{name} {value}" for name, value in row["setting"].items()) for row in sweep],
            marker={"color": PALETTE[number], "size": 9},
        )
        figure.add_vline(x=budgets[role], line_dash="dash", line_color=PALETTE[number])
    figure.update_layout(height=380, xaxis_title="nats added to retain text", yaxis_title="nats added to forget text")
    return figure
