"""Texts before and after a change, side by side, as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup


def sample_table(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> Markup:
    """One row per prompt; takes records with `prompt, clean, edited`, by source."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("mtsae_lens.reporting"), autoescape=True)
    return Markup(environment.get_template("samples.html").render(samples=samples))
