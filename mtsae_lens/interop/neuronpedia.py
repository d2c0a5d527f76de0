"""Export a folder of facts (`mtsae explore`) as the JSON that Neuronpedia imports: the `batch-N.json` files that SAEDashboard writes.

These fields of SAEDashboard's `NeuronpediaDashboardFeature` are filled for each feature:

- `feature_index`, `frac_nonzero` (share of tokens), `n_prompts_total`, `n_tokens_in_prompt`, `dataset`;
- `pos_str`, `pos_values`, `neg_str`, `neg_values`: promoted and suppressed tokens. The mean over the vocabulary is subtracted from our
  values;
- `freq_hist_data_bar_values`, `freq_hist_data_bar_heights`: centers of the bins, which are logarithmic here, and the firings in each bin;
- `activations`: windows of text with `tokens`, `values`, `qualifying_token_index` (the peak), `bin_min`, `bin_max`, `bin_contains`. Top
  examples have the bin (-1, maximum, -1), as in SAEDashboard. Sampled examples have the fifth of [0, maximum] that holds their peak, and
  `bin_contains` is the share of firings in it, read off the histogram.

These fields are empty because the facts do not hold them: `logits_hist_*` (over the whole vocabulary), `decoder_weights_dist`, `vector`,
`neuron_alignment_*` and `correlated_*` (correlations of activations; the co-firing of the facts is a different statistic).

SAEDashboard refuses keys that it does not know. The facts that only a temporal SAE has are therefore written beside it, as
`temporal-N.json` with the same number. The `examples` in it are in the order of `activations`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mtsae_lens.data.origins import display_name
from mtsae_lens.facts.folder import FactsFolder, Row
from mtsae_lens.files import write_json
from mtsae_lens.machine_paths import shorten
from mtsae_lens.upstream import extract_layer_from_tlens_hook_name

N_INTERVALS = 5  # as in SAEDashboard
_EMPTY = (
    "neuron_alignment_indices neuron_alignment_values neuron_alignment_l1 correlated_neurons_indices correlated_neurons_l1 "
    "correlated_neurons_pearson correlated_features_indices correlated_features_l1 correlated_features_pearson "
    "logits_hist_data_bar_heights logits_hist_data_bar_values decoder_weights_dist vector"
).split()
_TEMPORAL = (
    "main_dilation scale_shares context_share kernel mean_run_length persistence next_persistence_control impulse_response"
).split()
_CONTRIBUTIONS = "bias hidden_pre scale_contributions offset_contributions".split()


def export_neuronpedia(
    facts: FactsFolder, out: Path, *, model_id: str | None = None, sae_set: str | None = None, batch_size: int = 128
) -> int:
    """Write `batch-N.json`, and for a temporal SAE `temporal-N.json`, into a folder.

    Args:
        facts: the folder of facts to export.
        out: an existing folder to write to.
        model_id: Neuronpedia's name of the model; None for the name that the SAE records.
        sae_set: Neuronpedia's name of the set of SAEs; None for the name of the SAE's folder.
        batch_size: features per file.

    Returns:
        The number of batches.

    Raises:
        DataError: a table of the facts is damaged.
        OutputError: a file cannot be written.
    """
    about = facts.about
    head = {
        "model_id": model_id or display_name(about["model"]),
        "layer": extract_layer_from_tlens_hook_name(about["hook_name"]) or 0,
        "sae_set": sae_set or about["sae"],
        "sae_id_suffix": None,
    }
    n_batches = 0
    for number, rows in enumerate(_batches(facts.features(), batch_size)):
        examples = _examples_by_feature(facts, rows)
        features = [make_dashboard_feature(row, examples[row["feature"]], about) for row in rows]
        write_json(out / f"batch-{number}.json", head | {"features": features})
        if about["dilations"]:
            temporal = [make_temporal_feature(row, examples[row["feature"]]) for row in rows]
            axes = {name: about[name] for name in ("dilations", "offsets", "persistence_lags")}
            axes["impulse_lags"] = about.get("impulse_lags", [])  # explorations of version 0.1.0 lack it
            write_json(out / f"temporal-{number}.json", head | axes | {"features": temporal})
        n_batches += 1
    return n_batches


def _batches(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    remaining = iter(rows)
    while batch := list(islice(remaining, size)):
        yield batch


def _examples_by_feature(facts: FactsFolder, features: Sequence[Row]) -> dict[int, list[Row]]:
    grouped: dict[int, list[Row]] = defaultdict(list)
    for row in facts.example_table(features[0]["feature"], features[-1]["feature"]).to_pylist():
        grouped[row["feature"]].append(row)
    return grouped


def make_dashboard_feature(row: Row, examples: list[Row], about: dict[str, Any]) -> dict[str, Any]:
    """Describe a feature in the fields of SAEDashboard's `NeuronpediaDashboardFeature`.

    Args:
        row: the feature's row of `features.parquet`.
        examples: its rows of `examples.parquet`.
        about: the content of `explore.json`.
    """
    edges = about["histogram_edges"]
    heights = row["histogram"] or []
    return {
        "feature_index": row["feature"],
        **{name: [] for name in _EMPTY},
        "pos_str": row["promoted_tokens"] or [],
        "pos_values": _rounded(row["promoted_logits"]),
        "neg_str": row["suppressed_tokens"] or [],
        "neg_values": _rounded(row["suppressed_logits"]),
        "frac_nonzero": row["density"] or 0.0,
        "freq_hist_data_bar_values": [_significant((low + high) / 2) for low, high in pairwise(edges)] if heights else [],
        "freq_hist_data_bar_heights": heights,
        "n_prompts_total": math.ceil(about["n_tokens"] / (about["context_size"] - 1)),  # position 0 is not among the tokens
        "n_tokens_in_prompt": about["context_size"],
        "dataset": ", ".join(shorten(corpus["name"]) for corpus in about["corpora"]),
        "activations": [_activation(example, row, edges) for example in examples],
    }


def _activation(example: Row, row: Row, edges: Sequence[float]) -> dict[str, Any]:
    bin_min, bin_max, share = -1.0, row["max_activation"] or 0.0, -1.0
    if example["kind"] != "top":
        bin_min, bin_max, share = interval(example["activations"][example["peak"]], bin_max, row["histogram"] or [], edges)
    return {
        "tokens": example["tokens"],
        "values": _rounded(example["activations"]),
        "qualifying_token_index": example["peak"],
        "bin_min": _significant(bin_min),
        "bin_max": _significant(bin_max),
        "bin_contains": _significant(share),
    }


def interval(activation: float, highest: float, histogram: Sequence[int], edges: Sequence[float]) -> tuple[float, float, float]:
    """Find the fifth of [0, highest] in which an activation lies, and the share of the feature's firings in it.

    Args:
        activation: the activation of one firing.
        highest: the feature's highest activation.
        histogram: firings per bin; they count as evenly spread within a bin.
        edges: edges of the bins, one more than there are bins, increasing.

    Returns:
        Lower end, upper end, and share.
    """
    width = highest / N_INTERVALS
    number = min(int(activation / width), N_INTERVALS - 1) if width > 0 else 0
    low, high = number * width, (number + 1) * width
    total = sum(histogram)
    if not total:
        return low, high, 0.0
    # The outermost bins also count values beyond their edges.
    below = np.interp([low, high], [0.0, *edges[1:-1], max(highest, edges[-1])], np.concatenate([[0], np.cumsum(histogram)]))
    end = total if number == N_INTERVALS - 1 else below[1]  # no firing lies above the highest
    return low, high, float(end - below[0]) / total


def make_temporal_feature(row: Row, examples: list[Row]) -> dict[str, Any]:
    """Describe what only a temporal SAE has: a feature's time scales, and each example's pre-activation by scale and offset.

    Args:
        row: the feature's row of `features.parquet`.
        examples: its rows of `examples.parquet`.
    """
    return {
        "feature_index": row["feature"],
        **{name: _plain(row.get(name)) for name in _TEMPORAL},
        "examples": [{name: _plain(example[name]) for name in _CONTRIBUTIONS} for example in examples],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return _rounded(value)
    return _significant(value) if isinstance(value, float) else value


def _rounded(values: Sequence[float] | None) -> list[float | None]:
    return [_significant(value) for value in values or []]


def _significant(value: float | None) -> float | None:
    """Round to five significant digits; None for NaN and infinity, which JSON does not have."""
    return float(f"{value:.5g}") if value is not None and math.isfinite(value) else None
