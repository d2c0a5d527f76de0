"""Figures of the unlearning benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import plotly.graph_objects as go

from mtsae_lens.records import Interval
from mtsae_lens.reporting.figures import PALETTE, error_bars

_REFERENCE = "#808898"
_DASHES = ("solid", "dash", "dot")
_SYMBOLS = ("circle", "square-open", "diamond-open")


def _styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return line and marker of every name: a color and a symbol for each method, a dash for each variant (what follows a comma)."""
    methods = list(dict.fromkeys(name.split(",")[0] for name in names))
    n_variants = dict.fromkeys(methods, 0)
    styles = {}
    for name in names:
        method = name.split(",")[0]
        lap, place = divmod(methods.index(method), len(PALETTE))
        line = {"color": PALETTE[place], "width": 1.6, "dash": _DASHES[n_variants[method] % len(_DASHES)]}
        styles[name] = {"line": line, "marker": {"symbol": _SYMBOLS[lap % len(_SYMBOLS)], "size": 7}}
        n_variants[method] += 1
    return styles


class CostPoint(Protocol):
    """What a method adds to the loss on forget, near and far text at one budget."""

    @property
    def forget(self) -> Interval:
        """Nats added to the forget text."""

    @property
    def near(self) -> Interval | None:
        """Nats added to the near text that lost most; None without near text."""

    @property
    def far(self) -> Interval:
        """Nats added to the far text that lost most."""


def cost_curves(curves: Mapping[str, Sequence[CostPoint]], reference: float | None, cost: str) -> go.Figure:
    """Draw forgetting against its cost, one line per method through its budgets, both with 95% intervals; the reference is dashed.

    Args:
        curves: points by method.
        reference: nats that the model that never saw the text loses more than the clean one; None without one.
        cost: `near` or `far`, which cost is drawn.
    """
    figure, styles = go.Figure(), _styles(list(curves))
    for name, points in curves.items():
        color = styles[name]["line"]["color"]
        costs, gains = [getattr(point, cost) for point in points], [point.forget for point in points]
        figure.add_scatter(
            name=name,
            x=[c.mean for c in costs],
            y=[g.mean for g in gains],
            mode="lines+markers",
            **styles[name],
            error_x=error_bars(costs, thickness=1, width=2, color=color),
            error_y=error_bars(gains, thickness=1, width=2, color=color),
        )
    if reference is not None:
        figure.add_hline(y=reference, line_dash="dash", line_color=_REFERENCE, annotation_text="never saw the text")
    figure.update_layout(
        height=480,
        xaxis_title=f"nats added to {cost} text",
        yaxis_title="nats added to forget text",
        legend={"orientation": "h", "y": -0.2},
    )
    return figure


class RelearningPoint(Protocol):
    """The loss on the forget text after so many steps of relearning."""

    @property
    def step(self) -> int:
        """How many steps."""

    @property
    def nll(self) -> float:
        """The loss, nats per token."""


def relearning_curves(curves: Mapping[str, Sequence[RelearningPoint]], clean: float) -> go.Figure:
    """Draw the loss on the forget text while an attacker teaches it again, one line per method; dashed: the model before unlearning."""
    figure, styles = go.Figure(), _styles(list(curves))
    for name, points in curves.items():
        figure.add_scatter(
            name=name,
            x=[point.step for point in points],
            y=[point.nll for point in points],
            mode="lines+markers",
            **styles[name],
        )
    figure.add_hline(y=clean, line_dash="dash", line_color=_REFERENCE, annotation_text="before unlearning")
    figure.update_layout(
        height=420,
        xaxis_title="steps of relearning",
        yaxis_title="nats per token on forget text",
        legend={"orientation": "h", "y": -0.25},
    )
    return figure
