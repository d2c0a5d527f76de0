"""What the page loads: one function per kind of shard, from records to plain JSON.

The list is one file of columns, so that a page of 16,000 features opens at once; the rest comes in shards when it is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any

from mtsae_lens.facts.records import Example, FeatureFacts, columns
from mtsae_lens.reporting.explorer.quantiles import quantile
from mtsae_lens.reporting.explorer.scripts import rounded

FEATURES_PER_SHARD = 64
TEXTS_PER_SHARD = 8

Record = Mapping[str, Any]

_EXACT = 7  # significant digits of what must add up: as many as float32 has
_SNIPPET_TOKENS = 14
_SPECIAL = re.compile(r"<\|[^<>|]+\|>|</?\w{1,8}>|\[[A-Z]+\]")


def column_shard() -> dict[str, dict[str, dict[str, Any]]]:
    """Describe the columns of features and of examples: their meanings, titles and formats."""
    return {
        table: {
            name: {"title": column.title, "meaning": column.meaning, "format": column.shown_as, "digits": column.digits}
            for name, column in columns(record).items()
        }
        for table, record in {"features": FeatureFacts, "examples": Example}.items()
    }


def list_shard(features: Iterable[Record]) -> dict[str, list[Any]]:
    """Collect the columns of the list over all features.

    Args:
        features: rows with the columns of `FeatureFacts`.

    Returns:
        The values of all features by column. Shares of scales are rounded to 1 %, because they are drawn a few pixels high.
    """
    listed: dict[str, list[Any]] = {name: [] for name, column in columns(FeatureFacts).items() if column.in_list}
    for row in features:
        for name, values in listed.items():
            is_drawn = name == "scale_shares"
            values.append([round(share, 2) for share in row[name] or ()] if is_drawn else rounded(row[name]))
    return listed


def feature_shard(features: Sequence[Record]) -> list[dict[str, Any]]:
    """All facts of some features."""
    return [rounded(dict(f)) for f in features]


def example_shard(
    features: Sequence[Record], examples: Mapping[int, Sequence[Record]], edges: Sequence[float]
) -> list[list[dict[str, Any]]]:
    """The examples of some features, each with the quantile of its peak."""
    return [[_example(row, f, edges) for row in examples.get(f["feature"], ())] for f in features]


def text_shard(texts: Sequence[Record]) -> list[dict[str, Any]]:
    """Some contexts of the text view."""
    return [rounded(dict(text)) for text in texts]


def text_index(texts: Sequence[Record]) -> list[dict[str, Any]]:
    """What the text view lists before a context is loaded."""
    return [
        {"corpus": t["corpus"], "document": t["document"], "start": "".join(_first_words(t)[:_SNIPPET_TOKENS]).strip()}
        for t in texts
    ]


def _first_words(text: Record) -> list[str]:
    """The tokens after those by which a tokenizer says that a text begins: they look so, and no feature is let fire on them."""
    n_special = sum(
        1
        for _ in takewhile(
            lambda pair: _SPECIAL.fullmatch(pair[0]) and not pair[1], zip(text["tokens"], text["features"], strict=True)
        )
    )
    return text["tokens"][n_special:]


def _example(row: Record, facts: Record, edges: Sequence[float]) -> dict[str, Any]:
    """Activations and their parts only where the feature fires: most of a window is silent."""
    activations = row["activations"]
    standing = quantile(activations[row["peak"]], facts["histogram"] or (), edges, facts["max_activation"])
    fired = [place for place, value in enumerate(activations) if value > 0]
    example = {name: row[name] for name in ("kind", "rank", "corpus", "document", "position", "tokens", "peak")}
    example |= {
        "fired": fired,
        "activations": rounded([activations[place] for place in fired]),
        "token_scales": _token_scales(row, fired),
        "quantile": rounded(standing, _EXACT),
        "model_attribution": rounded(row["model_attribution"] or []),
    }
    for name in ("bias", "hidden_pre", "scale_contributions", "offset_contributions"):
        example[name] = rounded(row[name], _EXACT)
    return example


def _token_scales(row: Record, fired: Sequence[int]) -> list[list[float]]:
    """Contributions per scale at each token where the feature fires; empty for a pointwise SAE."""
    flat = row["token_scale_contributions"] or []
    n_scales = len(flat) // len(row["tokens"]) if row["tokens"] else 0
    return [rounded(flat[place * n_scales : (place + 1) * n_scales]) for place in fired] if n_scales else []
