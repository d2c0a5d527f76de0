"""Write a report as one HTML file that contains everything: it opens from disk, needs no network, and follows the reader's dark mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
import plotly.io as pio
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from mtsae_lens.files import write_text
from mtsae_lens.machine_paths import shorten, shorten_name, shorten_names

REPORT_FILE = "report.html"


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header; numbers are shown to four significant digits."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Section:
    """A heading, a sentence that says what to look for, and a table, a figure or HTML."""

    title: str
    text: str = ""
    table: Table | None = None
    figure: go.Figure | None = None
    html: Markup | None = None


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else shorten_name(str(value))


def _figure(figure: go.Figure) -> Markup:
    figure = go.Figure(shorten_names(figure.to_dict()))
    figure.update_layout(
        template="plotly_white",
        margin={"l": 60, "r": 20, "t": 40, "b": 50},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": "#808898"},
    )
    return Markup(
        pio.to_html(figure, full_html=False, include_plotlyjs=False, config={"displayModeBar": False, "responsive": True})
    )


def _short(text: str) -> str:
    """Shorten the paths in a text; markup remains markup."""
    return type(text)(shorten(text))


def write_report(
    out: Path, title: str, lead: str, sections: Sequence[Section], provenance: dict[str, Any], summary: Sequence[str] = ()
) -> Path:
    """Write `report.html` into a folder, whole or not at all, without absolute paths of the machine.

    Args:
        out: the folder.
        title: heading of the page.
        lead: what was done, in one sentence.
        sections: the sections in order; section number n, from 1 on, has the anchor `section-n`.
        provenance: how the results were made.
        summary: the results in a few sentences, shown before everything else.

    Returns:
        Path of the page.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mtsae_lens.reporting"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = _cell
    environment.filters["figure"] = _figure
    environment.filters["short"] = _short
    page = environment.get_template("report.html").render(
        title=title, lead=lead, summary=summary, sections=sections, provenance=provenance, plotlyjs=Markup(get_plotlyjs())
    )
    path = out / REPORT_FILE
    write_text(path, page)
    return path
