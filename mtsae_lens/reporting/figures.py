"""Draw figures of training, of the effects of edits and of sweeps."""

from __future__ import annotations

import html
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mtsae_lens.records import Interval

PALETTE = ("#2563eb", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#06b6d4", "#84cc16", "#ec4899")
LEAST_COST = 1e-4
_CURVES = (
    ("metrics/explained_variance", "explained variance"),
    ("losses/overall_loss", "loss"),
    ("metrics/l0", "L0"),
    ("sparsity/dead_features", "dead features"),
)


def error_bars(intervals: Sequence[Interval], **style: Any) -> dict[str, Any]:
    """Draw error bars around means in plotly's form: distances from the mean.

    Args:
        intervals: one interval per point.
        style: further properties of plotly's error bars.
    """
    return {
        "type": "data",
        "symmetric": False,
        "array": [interval.high - interval.mean for interval in intervals],
        "arrayminus": [interval.mean - interval.low for interval in intervals],
    } | style


def training_curves(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> go.Figure:
    """Draw explained variance, loss, L0 and dead features over training steps, one line per run.

    Args:
        logs: rows of the training log, by run.
    """
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
    # the first steps overshoot so much that nothing else would be visible
    figure.update_yaxes(range=[-0.2, 1.0], row=1, col=1)
    figure.update_yaxes(type="log", row=1, col=2)
    figure.update_layout(height=560, legend={"orientation": "h", "y": -0.1})
    return figure


def scale_curves(rows: Sequence[Mapping[str, Any]], dilations: Sequence[int]) -> go.Figure:
    """Draw the norm of each scale's encoder rows over training steps.

    Args:
        rows: rows of the training log.
        dilations: dilations of the scales.
    """
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


def firing_curves(
    lags: Sequence[int],
    autocorrelation: Mapping[str, Sequence[float]],
    first_positions: Sequence[int],
    relative_rate: Mapping[str, Sequence[float]],
) -> go.Figure:
    """Draw the autocorrelation of firing by lag, and the firing rate by position in the context.

    Args:
        lags: distances in tokens.
        autocorrelation: one curve over the lags by name; the second one is drawn dashed, as a control.
        first_positions: first position of each bin.
        relative_rate: by quantile of features, the rate in each bin over the mean rate.
    """
    figure = make_subplots(rows=1, cols=2, subplot_titles=("autocorrelation of firing", "rate by position / mean rate"))
    for number, (name, values) in enumerate(autocorrelation.items()):
        line: dict[str, Any] = {"color": PALETTE[number], "width": 1.8, "dash": "dash" if number else "solid"}
        figure.add_scatter(x=list(lags), y=_finite(values), name=name, line=line, row=1, col=1)
    for number, (name, values) in enumerate(relative_rate.items(), start=len(autocorrelation)):
        line = {"color": PALETTE[number], "width": 1.8}
        figure.add_scatter(x=list(first_positions), y=_finite(values), name=f"{name} of features", line=line, row=1, col=2)
    figure.update_xaxes(title_text="lag, tokens", type="log", tickvals=list(lags), row=1, col=1)
    figure.update_xaxes(title_text="position in the context", tickvals=list(first_positions), row=1, col=2)
    figure.update_yaxes(rangemode="tozero", row=1, col=2)
    figure.update_layout(height=360, legend={"orientation": "h", "y": -0.28})
    return figure


def _finite(values: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def effect_bars(effects: Mapping[str, Mapping[str, Interval]], forget: Collection[str] = ()) -> go.Figure:
    """Draw the increase of the loss by corpus and method. Retain text has a separate panel and axis, on which the cost can be read.

    Args:
        effects: increase in nats per token by method and corpus, with a 95% interval or with the smallest and largest of several draws.
        forget: names of the corpora to forget; empty puts all corpora into one panel.
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
            figure.add_bar(
                name=method,
                x=shown,
                y=[value.mean for value in values],
                marker_color=PALETTE[number % len(PALETTE)],
                error_y=error_bars(values),
                legendgroup=method,
                showlegend=row == 1,
                row=row,
                col=1,
            )
    figure.update_yaxes(title_text="nats per token")
    figure.update_layout(barmode="group", height=300 + 260 * (len(panels) - 1), legend={"orientation": "h", "y": -0.12})
    return figure


class TriedSetting(Protocol):
    """One setting of a sweep and its effects, in nats per token."""

    @property
    def setting(self) -> Mapping[str, object]:
        """Return how the edit was made, by name."""

    @property
    def forget(self) -> float:
        """Return the increase of the loss on the forget text."""

    @property
    def near(self) -> float:
        """Return the increase of the loss on the near text that is affected most."""

    @property
    def far(self) -> float:
        """Return the increase of the loss on the far text that is affected most."""


def sweep_scatter(sweep: Sequence[TriedSetting], budgets: Mapping[str, float]) -> go.Figure:
    """Draw forgetting against cost, one point per setting tried on TUNE; dashed lines are the budgets.

    The cost axis is logarithmic, because most settings cost next to nothing and would be one point on a linear axis. Costs below
    `LEAST_COST`, and gains, are drawn at its left end.

    Args:
        sweep: the settings and their effects.
        budgets: the budgets by role.
    """
    figure = go.Figure()
    for number, role in enumerate(("near", "far")):
        costs: list[float] = [getattr(tried, role) for tried in sweep]
        figure.add_scatter(
            x=[max(cost, LEAST_COST) if math.isfinite(cost) else None for cost in costs],
            y=[tried.forget if math.isfinite(tried.forget) else None for tried in sweep],
            mode="markers",
            name=f"{role} text whose loss rises most",
            text=[f"{_setting(tried)}<br>{role} {cost}" for tried, cost in zip(sweep, costs, strict=True)],
            marker={"color": PALETTE[number], "size": 9},
        )
        figure.add_vline(x=budgets[role], line_dash="dash", line_color=PALETTE[number])
    figure.update_xaxes(
        type="log", exponentformat="none", title_text=f"nats added to text to keep<br>({LEAST_COST:g} or less at the left end)"
    )
    figure.update_layout(height=380, yaxis_title="nats added to forget text", legend={"orientation": "h", "y": -0.25})
    return figure


def _setting(tried: TriedSetting) -> str:
    return html.escape(", ".join(f"{name} {value}" for name, value in tried.setting.items()))
