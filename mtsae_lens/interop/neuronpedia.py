"""A folder of facts (`mtsae explore`) as the JSON that Neuronpedia imports: the `batch-N.json` that SAEDashboard writes.

Of each feature these fields of SAEDashboard's `NeuronpediaDashboardFeature` are filled:

- `feature_index`, `frac_nonzero` (share of tokens), `n_prompts_total`, `n_tokens_in_prompt`, `dataset`;
- `pos_str`, `pos_values`, `neg_str`, `neg_values`: tokens promoted and suppressed. Ours have the mean over the vocabulary taken off;
- `freq_hist_data_bar_values`, `freq_hist_data_bar_heights`: middles of the bins, which are log-spaced here, and firings in them;
- `activations`: windows of text with `tokens`, `values`, `qualifying_token_index` (the peak), `bin_min`, `bin_max`, `bin_contains`. Top
  examples have the bin (-1, maximum, -1), as there; sampled ones that fifth of [0, maximum] in which their peak lies, `bin_contains` being the
  share of firings in it, read off the histogram.

Empty, because the facts do not hold them: `logits_hist_*` (all the vocabulary), `decoder_weights_dist`, `vector`, `neuron_alignment_*`,
`correlated_*` (there, correlations of activations; our co-firing is another thing).

SAEDashboard refuses keys that it does not know, so what only a temporal SAE has lies beside, under the same number: `temporal-N.json`. Its
`examples` are in the order of `activations`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mtsae_lens.checksums import check_checksums
from mtsae_lens.data.origins import display_name
from mtsae_lens.errors import DataError
from mtsae_lens.files import write_json
from mtsae_lens.machine_paths import shorten
from mtsae_lens.sealed import read_json
from mtsae_lens.upstream import extract_layer_from_tlens_hook_name

_REMEDY = "delete its folder and run 'mtsae explore' again"
FACTS_FORMAT = "mtsae-exploration-1"
N_INTERVALS = 5  # as SAEDashboard
_EMPTY = (
    "neuron_alignment_indices neuron_alignment_values neuron_alignment_l1 correlated_neurons_indices correlated_neurons_l1 "
    "correlated_neurons_pearson correlated_features_indices correlated_features_l1 correlated_features_pearson "
    "logits_hist_data_bar_heights logits_hist_data_bar_values decoder_weights_dist vector"
).split()
_TEMPORAL = "main_dilation scale_shares context_share kernel mean_run_length persistence".split()
_CONTRIBUTIONS = "bias hidden_pre scale_contributions offset_contributions".split()


@dataclass(frozen=True)
class Facts:
    """The part of a folder of facts that is read at once; its examples are read batch by batch."""

    folder: Path
    about: dict[str, Any]
    features: list[dict[str, Any]]

    @classmethod
    def open(cls, folder: Path) -> Facts:
        """Read `explore.json` and `features.parquet`.

        Raises:
            DataError: no folder of facts, or one of another format.
        """
        if not (folder / "explore.json").is_file():
            raise DataError(f"{folder}: no explore.json; give the --out folder of 'mtsae explore'")
        about = read_json(folder / "explore.json", dict[str, Any], _REMEDY)
        if about.get("format") != FACTS_FORMAT:
            raise DataError(
                f"{folder}: facts of format {about.get('format')!r}; needed {FACTS_FORMAT!r}: run 'mtsae explore' again"
            )
        check_checksums(folder, _REMEDY)
        try:
            features = pq.read_table(folder / "features.parquet").to_pylist()
            pq.read_metadata(folder / "examples.parquet")
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(
                f"{folder}: no facts ({type(error).__name__}: {error}); give the --out folder of 'mtsae explore'"
            ) from error
        return cls(folder, about, features)

    def examples(self, first: int, last: int) -> dict[int, list[dict[str, Any]]]:
        """The examples of features `first` to `last`, both included, in their order."""
        table = pq.read_table(self.folder / "examples.parquet", filters=[("feature", ">=", first), ("feature", "<=", last)])
        grouped: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for row in table.to_pylist():
            grouped[row["feature"]].append(row)
        return grouped


def export_neuronpedia(
    facts: Facts, out: Path, *, model_id: str | None = None, sae_set: str | None = None, batch_size: int = 128
) -> int:
    """Write `batch-N.json`, and for a temporal SAE `temporal-N.json`, into a folder; returns how many batches there are.

    Args:
        facts: of all features.
        out: an existing folder.
        model_id: Neuronpedia's name of the model; None for the SAE's own.
        sae_set: Neuronpedia's name of the set of SAEs; None for the SAE's folder.
        batch_size: features in a file.
    """
    about = facts.about
    head = {
        "model_id": model_id or display_name(about["model"]),
        "layer": extract_layer_from_tlens_hook_name(about["hook_name"]) or 0,
        "sae_set": sae_set or about["sae"],
        "sae_id_suffix": None,
    }
    n_batches = 0
    for number, rows in enumerate(_batches(facts.features, batch_size)):
        examples = facts.examples(rows[0]["feature"], rows[-1]["feature"])
        features = [dashboard_feature(row, examples[row["feature"]], about) for row in rows]
        write_json(out / f"batch-{number}.json", head | {"features": features})
        if about["dilations"]:
            temporal = [temporal_feature(row, examples[row["feature"]]) for row in rows]
            axes = {name: about[name] for name in ("dilations", "offsets", "persistence_lags")}
            write_json(out / f"temporal-{number}.json", head | axes | {"features": temporal})
        n_batches += 1
    return n_batches


def _batches(rows: Sequence[dict[str, Any]], size: int) -> Iterator[Sequence[dict[str, Any]]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def dashboard_feature(row: dict[str, Any], examples: list[dict[str, Any]], about: dict[str, Any]) -> dict[str, Any]:
    """A feature as SAEDashboard's `NeuronpediaDashboardFeature` names its fields."""
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


def _activation(example: dict[str, Any], row: dict[str, Any], edges: Sequence[float]) -> dict[str, Any]:
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
    """The fifth of [0, highest] in which an activation lies, and the share of firings in it (even within a bin of the histogram)."""
    width = highest / N_INTERVALS
    number = min(int(activation / width), N_INTERVALS - 1) if width > 0 else 0
    low, high = number * width, (number + 1) * width
    total = sum(histogram)
    if not total:
        return low, high, 0.0
    # the outermost bins hold what lies beyond them too
    below = np.interp([low, high], [0.0, *edges[1:-1], max(highest, edges[-1])], np.concatenate([[0], np.cumsum(histogram)]))
    end = total if number == N_INTERVALS - 1 else below[1]  # nothing lies beyond the highest
    return low, high, float(end - below[0]) / total


def temporal_feature(row: dict[str, Any], examples: list[dict[str, Any]]) -> dict[str, Any]:
    """What only a temporal SAE has: time scales of the feature, and whose doing each example's pre-activation is."""
    return {
        "feature_index": row["feature"],
        **{name: _plain(row[name]) for name in _TEMPORAL},
        "examples": [{name: _plain(example[name]) for name in _CONTRIBUTIONS} for example in examples],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return _rounded(value)
    return _significant(value) if isinstance(value, float) else value


def _rounded(values: Sequence[float] | None) -> list[float | None]:
    return [_significant(value) for value in values or []]


def _significant(value: float | None) -> float | None:
    """Five significant digits; JSON has no NaN."""
    return float(f"{value:.5g}") if value is not None and math.isfinite(value) else None
