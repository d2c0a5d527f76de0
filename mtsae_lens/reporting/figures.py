"""Figures from plain numbers."""

from __future__ import annotations

import html
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

PALETTE = ("#2563eb", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#06b6d4", "#84cc16", "#ec4899")
LEAST_COST = 1e-4
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


def effect_bars(effects: Mapping[str, Mapping[str, Mapping[str, Any]]], forget: Collection[str] = ()) -> go.Figure:
    """Draw nats added per token, by corpus and method; text to keep has a panel and a scale of its own, for there the price is read.

    Args:
        effects: by method and corpus, rows with `nll_delta` and its 95% interval, or the least and the most of several draws.
        forget: names of the corpora to forget; none: all corpora in one panel.
    """
    names = list(next(iter(effects.values())))
    forgotten, kept = ([name for name in names if (name in forget) is wanted] for wanted in (True, False))
    panels = {"text to forget": forgotten, "text to keep (another scale)": kept}
    panels = {title: corpora for title, corpora in panels.items() if corpora}
    figure = make_subplots(
        rows=len(panels), cols=1, subplot_titles=list(panels) if len(panels) > 1 else None, vertical_spacing=0.16
    )
    for number, (method, corpora) in enumerate(effects.items()):
        for row, shown in enumerate(panels.values(), start=1):
            values = [corpora[name] for name in shown]
            deltas = [value["nll_delta"] for value in values]
            low, high = (f"nll_delta_{end}" for end in (("low", "high") if "nll_delta_low" in values[0] else ("min", "max")))
            figure.add_bar(
                name=method,
                x=shown,
                y=deltas,
                marker_color=PALETTE[number % len(PALETTE)],
                error_y=error_bars(deltas, [value[low] for value in values], [value[high] for value in values]),
                legendgroup=method,
                showlegend=row == 1,
                row=row,
                col=1,
            )
    figure.update_yaxes(title_text="nats per token")
    figure.update_layout(barmode="group", height=300 + 260 * (len(panels) - 1), legend={"orientation": "h", "y": -0.12})
    return figure


def sweep_scatter(sweep: Sequence[Mapping[str, Any]], budgets: Mapping[str, float]) -> go.Figure:
    """Draw forgetting against cost, one point per setting tried on TUNE; dashed lines are the budgets.

    The axis of cost is logarithmic: most settings cost next to nothing, and on an even axis they would be one point. What costs less than
    `LEAST_COST`, or gains, stands at its left end.
    """
    figure = go.Figure()
    for number, role in enumerate(("near", "far")):
        figure.add_scatter(
            x=[None if row[role] is None else max(row[role], LEAST_COST) for row in sweep],
            y=[row["forget"] for row in sweep],
            mode="markers",
            name=f"worst {role}-retain",
            text=[_setting(row) + f"<br>{role} {row[role]}" for row in sweep],
            marker={"color": PALETTE[number], "size": 9},
        )
        figure.add_vline(x=budgets[role], line_dash="dash", line_color=PALETTE[number])
    figure.update_xaxes(
        type="log", exponentformat="none", title_text=f"nats added to text to keep<br>({LEAST_COST:g} or less at the left end)"
    )
    figure.update_layout(height=380, yaxis_title="nats added to forget text", legend={"orientation": "h", "y": -0.25})
    return figure


def _setting(row: Mapping[str, Any]) -> str:
    return html.escape(", ".join(f"{name} {value}" for name, value in row["setting"].items()))
