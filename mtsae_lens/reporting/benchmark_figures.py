"""Draw figures of the unlearning benchmark."""

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
    """Return line and marker of every name: a color and a symbol per method, and a dash style per variant (the part after a comma)."""
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
    """The increase of the loss on forget, near and far text by one method at one budget."""

    @property
    def forget(self) -> Interval:
        """Return the increase on the forget text."""

    @property
    def near(self) -> Interval | None:
        """Return the increase on the near text that is affected most; None without near text."""

    @property
    def far(self) -> Interval:
        """Return the increase on the far text that is affected most."""


def cost_curves(curves: Mapping[str, Sequence[CostPoint]], reference: float | None, cost: str) -> go.Figure:
    """Draw forgetting against its cost, one line per method through its budgets, both with 95% intervals; the reference is dashed.

    Args:
        curves: points by method.
        reference: increase of the reference's loss on the forget text over the clean model's, in nats per token; None without one.
        cost: the cost to draw: `near` or `far`.
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
    """The loss on the forget text after a number of steps of relearning."""

    @property
    def step(self) -> int:
        """Return the number of steps."""

    @property
    def nll(self) -> float:
        """Return the loss, in nats per token."""


def relearning_curves(curves: Mapping[str, Sequence[RelearningPoint]], clean: float) -> go.Figure:
    """Draw the loss on the forget text during relearning, one line per method; the dashed line is the model before unlearning.

    Args:
        curves: points by method.
        clean: loss of the model before unlearning, in nats per token.
    """
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
