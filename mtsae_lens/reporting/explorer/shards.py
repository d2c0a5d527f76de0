"""Make the data files of the page: one function per kind of shard, from rows to plain JSON.

The list of features is one file of columns, so that a page of 16,000 features opens at once. Everything else is in shards, which are loaded
when they are shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any

from mtsae_lens.facts.columns import columns
from mtsae_lens.facts.records import Example, FeatureFacts
from mtsae_lens.reporting.explorer.quantiles import quantile
from mtsae_lens.reporting.explorer.scripts import round_floats

FEATURES_PER_SHARD = 64
TEXTS_PER_SHARD = 8

Record = Mapping[str, Any]

_EXACT = 7  # significant digits of numbers that must add up: as many as float32 has
_SNIPPET_TOKENS = 14
_SPECIAL = re.compile(r"<\|[^<>|]+\|>|</?\w{1,8}>|\[[A-Z]+\]")


def make_column_shard() -> dict[str, dict[str, dict[str, Any]]]:
    """Describe the columns of features and of examples: their meanings, titles and formats."""
    return {
        table: {
            name: {"title": column.title, "meaning": column.meaning, "format": column.shown_as, "digits": column.digits}
            for name, column in columns(record).items()
        }
        for table, record in {"features": FeatureFacts, "examples": Example}.items()
    }


def make_list_shard(features: Iterable[Record]) -> dict[str, list[Any]]:
    """Collect the columns of the list over all features.

    Args:
        features: rows with the columns of `FeatureFacts`.

    Returns:
        The values of all features by column. Shares of scales are rounded to 1%, because they are drawn only a few pixels high.
    """
    listed: dict[str, list[Any]] = {name: [] for name, column in columns(FeatureFacts).items() if column.in_list}
    for row in features:
        for name, values in listed.items():
            is_drawn = name == "scale_shares"
            values.append([round(share, 2) for share in row[name] or ()] if is_drawn else round_floats(row[name]))
    return listed


def make_feature_shard(features: Sequence[Record]) -> list[dict[str, Any]]:
    """Make the shard of some features: all of their facts.

    Args:
        features: rows with the columns of `FeatureFacts`.
    """
    return [round_floats(dict(f)) for f in features]


def make_example_shard(
    features: Sequence[Record], examples: Mapping[int, Sequence[Record]], edges: Sequence[float]
) -> list[list[dict[str, Any]]]:
    """Make the shard of the examples of some features, each with the quantile of its peak.

    Args:
        features: rows with the columns of `FeatureFacts`.
        examples: rows with the columns of `Example`, by feature.
        edges: edges of the bins of the histograms.
    """
    return [[_example(row, f, edges) for row in examples.get(f["feature"], ())] for f in features]


def make_text_shard(texts: Sequence[Record]) -> list[dict[str, Any]]:
    """Make the shard of some contexts of the text view.

    Args:
        texts: rows with the columns of `TextFacts`.
    """
    return [round_floats(dict(text)) for text in texts]


def make_text_index(texts: Sequence[Record]) -> list[dict[str, Any]]:
    """Describe contexts for the menu of the text view: corpus, document and first words.

    Args:
        texts: rows with the columns of `TextFacts`.
    """
    return [
        {"corpus": t["corpus"], "document": t["document"], "start": "".join(_first_words(t)[:_SNIPPET_TOKENS]).strip()}
        for t in texts
    ]


def _first_words(text: Record) -> list[str]:
    """Return the tokens after the special tokens at the start, which look like `<|...|>`, `<s>` or `[CLS]` and have no features."""
    n_special = sum(
        1
        for _ in takewhile(
            lambda pair: _SPECIAL.fullmatch(pair[0]) and not pair[1], zip(text["tokens"], text["features"], strict=True)
        )
    )
    return text["tokens"][n_special:]


def _example(row: Record, facts: Record, edges: Sequence[float]) -> dict[str, Any]:
    """Describe an example, with activations and their parts only at tokens where the feature fires, which are few."""
    activations = row["activations"]
    standing = quantile(activations[row["peak"]], facts["histogram"] or (), edges, facts["max_activation"])
    fired = [place for place, value in enumerate(activations) if value > 0]
    example = {name: row[name] for name in ("kind", "rank", "corpus", "document", "position", "tokens", "peak")}
    example |= {
        "fired": fired,
        "activations": round_floats([activations[place] for place in fired]),
        "token_scales": _token_scales(row, fired),
        "quantile": round_floats(standing, _EXACT),
        "model_attribution": round_floats(row["model_attribution"] or []),
    }
    for name in ("bias", "hidden_pre", "scale_contributions", "offset_contributions"):
        example[name] = round_floats(row[name], _EXACT)
    return example


def _token_scales(row: Record, fired: Sequence[int]) -> list[list[float]]:
    """Return the contributions of the scales at each token where the feature fires; empty for a pointwise SAE."""
    flat = row["token_scale_contributions"] or []
    n_scales = len(flat) // len(row["tokens"]) if row["tokens"] else 0
    return [round_floats(flat[place * n_scales : (place + 1) * n_scales]) for place in fired] if n_scales else []
