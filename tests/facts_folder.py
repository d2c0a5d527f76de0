"""Make a synthetic folder of facts as `mtsae explore` writes it, with any number of features, from a seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mtsae_lens.facts.columns import parquet_schema
from mtsae_lens.facts.records import Example, FeatureFacts, TextFacts

WORDS = [" king", " queen", " tree", " sword", " moon", " river", ",", " the", "\n", " bread", "ing", " 12"]
HOSTILE = [
    "</script><script>window.hacked=1</script>",
    "<img src=x onerror=window.hacked=1>",
    "\"'&amp;",
    "\u2028\u2029",
    "\u202eevil",
    "\t",
]
N_BINS, BEFORE, AFTER = 16, 20, 8


def write_facts(
    folder: Path,
    d_sae: int = 200,
    dilations: tuple[float, ...] = (0, 1, 2, 4, 8),
    words: list[str] = WORDS,
    n_with_examples: int | None = None,
    impulse_lags: tuple[int, ...] = (),
    seed: int = 0,
) -> Path:
    """Write the folder; every seventeenth feature is dead; `dilations=()` for a pointwise SAE, `impulse_lags` for one with memory."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    offsets = sorted({0, *(-int(d) for d in dilations), *(-2 * int(d) for d in dilations)}, reverse=True)
    edges = np.geomspace(0.01, 20.0, N_BINS + 1).tolist()
    settings = {
        "format": "mtsae-exploration-1",
        "sae": "synthetic",
        "architecture": "mtsae" if dilations else "topk",
        "model": "made-up",
        "hook_name": "blocks.3.hook_resid_post",
        "d_sae": d_sae,
        "d_in": 16,
        "context_size": 64,
        "dilations": list(dilations),
        "offsets": offsets,
        "n_tokens": 100_000,
        "corpora": [{"name": "kjv", "n_tokens": 50_000}, {"name": "austen", "n_tokens": 50_000}],
        "histogram_edges": edges,
        "persistence_lags": [1, 2, 4, 8],
        "impulse_lags": list(impulse_lags),
        "carried_variance": 0.25 if impulse_lags else None,
        "before": BEFORE,
        "after": AFTER,
        "n_examples": 4,
        "n_sampled": 2,
        "n_text_contexts": 10,
        "n_cofiring_tokens": 100_000,
        "provenance": {"command": "mtsae explore <made up>", "seed": seed, "versions": {"torch": "0"}, "seconds": 1.0},
    }
    (folder / "explore.json").write_text(json.dumps(settings))
    features = [_feature(f, d_sae, len(dilations), len(offsets), dilations, words, rng) for f in range(d_sae)]
    for row in features if impulse_lags else ():
        norms = [0.6**lag for lag in impulse_lags]
        row |= {"impulse_response": norms, "carried_over": norms[0]}
    _write(folder / "features.parquet", features, FeatureFacts)
    n_with_examples = d_sae if n_with_examples is None else n_with_examples
    examples = [
        _example(f, kind, rank, len(dilations), len(offsets), words, rng)
        for f in range(n_with_examples)
        if f % 17 != 16
        for kind, n in (("top", 4), ("sampled", 2))
        for rank in range(n)
    ]
    _write(folder / "examples.parquet", examples, Example)
    _write(folder / "texts.parquet", [_text(n, d_sae, words, rng) for n in range(10)], TextFacts)
    return folder


def _write(path: Path, rows: list[dict[str, Any]], record: type[Any]) -> None:
    pq.write_table(pa.Table.from_pylist(rows, schema=parquet_schema(record)), path, compression="zstd", row_group_size=500)


def _shares(n: int, rng: np.random.Generator) -> list[float]:
    return rng.dirichlet(np.ones(n)).tolist() if n else []


def _feature(
    feature: int,
    d_sae: int,
    n_scales: int,
    n_offsets: int,
    dilations: tuple[float, ...],
    words: list[str],
    rng: np.random.Generator,
) -> dict[str, Any]:
    dead = feature % 17 == 16
    near = [int(n) for n in rng.integers(0, d_sae, 4)]
    pick = [words[(feature + n) % len(words)] for n in range(10)]
    row: dict[str, Any] = {
        "feature": feature,
        "n_active": 0 if dead else 1000 + feature,
        "density": 0.0 if dead else (1000 + feature) / 100_000,
        "histogram": [0] * N_BINS if dead else np.bincount(rng.integers(3, N_BINS, 1000 + feature), minlength=N_BINS).tolist(),
        "promoted_tokens": pick,
        "promoted_logits": np.linspace(2, 1, 10).tolist(),
        "suppressed_tokens": pick[::-1],
        "suppressed_logits": np.linspace(-2, -1, 10).tolist(),
        "neighbours": near,
        "neighbour_cosines": [0.9, 0.7, 0.5, 0.3],
        "cofiring": near,
        "cofiring_scores": [0.4, 0.3, 0.2, 0.1],
        "n_ablated": 0 if dead else 3,
    }
    if dead:
        return row
    shares, kernel = _shares(n_scales, rng), _shares(n_offsets, rng)
    return row | {
        "mean_activation": 2.5,
        "max_activation": 19.0 - feature / d_sae,
        "corpus_density": [0.02, 0.01],
        "selectivity": float(rng.normal()),
        "mean_run_length": 1.0 + float(rng.random()),
        "next_persistence": 0.5,
        "next_persistence_control": 0.04,
        "persistence": [0.5, 0.25, 0.125, None if feature == 3 else 0.06],  # None: never seen
        "scale_shares": shares,
        "main_dilation": float(dilations[int(np.argmax(shares))]) if n_scales else None,
        "context_share": 1 - shares[0] if n_scales else None,
        "kernel": kernel if n_scales else [],
        "ablation_next_nll": float(rng.normal() / 10),
        "ablation_rest_nll": float(rng.normal() / 100),
        "attribution": 1e-5,
        "top_token": words[feature % len(words)],
    }


def _example(
    feature: int, kind: str, rank: int, n_scales: int, n_offsets: int, words: list[str], rng: np.random.Generator
) -> dict[str, Any]:
    n = BEFORE + AFTER + 1
    activations = np.where(rng.random(n) < 0.15, rng.random(n) * 3, 0.0)
    activations[BEFORE] = 18.0 - rank - (9 if kind == "sampled" else 0)
    per_token = np.where(activations[:, None] > 0, rng.normal(size=(n, n_scales)), np.nan).astype(np.float32)
    bias = 0.25
    scales = per_token[BEFORE].astype(float)
    hidden = float(scales.sum()) + bias if n_scales else float(activations[BEFORE])
    lifts = rng.normal(size=n_offsets)
    return {
        "feature": feature,
        "kind": kind,
        "rank": rank,
        "corpus": int(rng.integers(2)),
        "document": f"document-{rank}",
        "position": BEFORE + rank,
        "tokens": [words[int(i)] for i in rng.integers(0, len(words), n)],
        "activations": activations.tolist(),
        "peak": BEFORE,
        "bias": bias,
        "hidden_pre": hidden,
        "scale_contributions": scales.tolist(),
        "offset_contributions": (lifts + (hidden - bias - lifts.sum()) / n_offsets).tolist(),
        "token_scale_contributions": per_token.ravel().tolist(),
        "model_attribution": rng.normal(size=n).tolist() if kind == "top" and rank < 2 else [],
    }


def _text(number: int, d_sae: int, words: list[str], rng: np.random.Generator) -> dict[str, Any]:
    n = 64
    fires = [sorted({int(f) for f in rng.integers(0, d_sae, 8 if at % 5 else 0)}) for at in range(n)]
    return {
        "corpus": number % 2,
        "document": f"text {number}",
        "tokens": [words[int(i)] for i in rng.integers(0, len(words), n)],
        "features": fires,
        "activations": [[3.0 - 0.25 * place for place in range(len(row))] for row in fires],
        "nll": [None, *(rng.random(n - 1) * 9).tolist()],
    }
