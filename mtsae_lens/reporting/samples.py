"""Show texts before and after a change, side by side, as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import jinja2
from markupsafe import Markup


class ContinuedPrompt(Protocol):
    """A prompt and its continuations before and after a change."""

    @property
    def prompt(self) -> str:
        """Return the prompt."""

    @property
    def clean(self) -> str:
        """Return the continuation before the change."""

    @property
    def edited(self) -> str:
        """Return the continuation after the change."""


def sample_table(samples: Mapping[str, Sequence[ContinuedPrompt]]) -> Markup:
    """Make an HTML table with one row per prompt.

    Args:
        samples: continued prompts by source.
    """
    environment = jinja2.Environment(loader=jinja2.PackageLoader("mtsae_lens.reporting"), autoescape=True)
    return Markup(environment.get_template("samples.html").render(samples=samples))
