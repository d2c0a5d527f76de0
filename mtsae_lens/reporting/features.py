"""Show features with their strongest examples, as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup


def feature_cards(features: Sequence[Any]) -> Markup:
    """Make one card per feature.

    Args:
        features: records with `feature, density, n_tokens, dilations, main_scale, examples`.
    """
    environment = jinja2.Environment(loader=jinja2.PackageLoader("mtsae_lens.reporting"), autoescape=True)
    return Markup(environment.get_template("features.html").render(features=[f for f in features if f.examples]))
