"""The folder of facts: names of its files, and the columns of its tables."""

from __future__ import annotations

import pyarrow as pa

FORMAT = "mtsae-exploration-1"
ABOUT_FILE, FEATURES_FILE, EXAMPLES_FILE, TEXTS_FILE = "explore.json", "features.parquet", "examples.parquet", "texts.parquet"

_INT, _LONG, _FLOAT, _TEXT = pa.int32(), pa.int64(), pa.float32(), pa.string()
_FLOATS, _TEXTS, _INTS = pa.list_(_FLOAT), pa.list_(_TEXT), pa.list_(_INT)

FEATURES = pa.schema(
    {
        "feature": _INT,
        "n_active": _LONG,
        "density": _FLOAT,
        "mean_activation": _FLOAT,
        "max_activation": _FLOAT,
        "histogram": pa.list_(_LONG),
        "corpus_density": _FLOATS,
        "selectivity": _FLOAT,
        "promoted_tokens": _TEXTS,
        "promoted_logits": _FLOATS,
        "suppressed_tokens": _TEXTS,
        "suppressed_logits": _FLOATS,
        "neighbours": _INTS,
        "neighbour_cosines": _FLOATS,
        "cofiring": _INTS,
        "cofiring_scores": _FLOATS,
        "mean_run_length": _FLOAT,
        "persistence": _FLOATS,
        "scale_shares": _FLOATS,
        "main_dilation": _FLOAT,
        "context_share": _FLOAT,
        "kernel": _FLOATS,
        "ablation_next_nll": _FLOAT,
        "ablation_rest_nll": _FLOAT,
        "n_ablated": _INT,
        "attribution": _FLOAT,
        "top_token": _TEXT,
    }
)
EXAMPLES = pa.schema(
    {
        "feature": _INT,
        "kind": _TEXT,
        "rank": _INT,
        "corpus": _INT,
        "document": _TEXT,
        "position": _INT,
        "tokens": _TEXTS,
        "activations": _FLOATS,
        "peak": _INT,
        "bias": _FLOAT,
        "hidden_pre": _FLOAT,
        "scale_contributions": _FLOATS,
        "offset_contributions": _FLOATS,
        "token_scale_contributions": _FLOATS,
        "model_attribution": _FLOATS,
    }
)
TEXTS = pa.schema(
    {
        "corpus": _INT,
        "document": _TEXT,
        "tokens": _TEXTS,
        "features": pa.list_(_INTS),
        "activations": pa.list_(_FLOATS),
        "nll": _FLOATS,
    }
)
