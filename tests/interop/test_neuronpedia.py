"""Test the export of a synthetic folder of facts: SAEDashboard's fields, and nothing that its reader refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtsae_lens.errors import DataError
from mtsae_lens.facts.columns import parquet_schema
from mtsae_lens.facts.folder import FactsFolder
from mtsae_lens.facts.records import Example, FeatureFacts, TextFacts
from mtsae_lens.interop.neuronpedia import export_neuronpedia, interval

EDGES = [0.1, 1.0, 10.0, 100.0]
FIELDS = set(  # of SAEDashboard's NeuronpediaDashboardFeature, which refuses any other
    "feature_index neuron_alignment_indices neuron_alignment_values neuron_alignment_l1 correlated_neurons_indices correlated_neurons_l1 "
    "correlated_neurons_pearson correlated_features_indices correlated_features_l1 correlated_features_pearson neg_str neg_values pos_str "
    "pos_values frac_nonzero freq_hist_data_bar_values freq_hist_data_bar_heights logits_hist_data_bar_heights logits_hist_data_bar_values "
    "n_prompts_total n_tokens_in_prompt dataset activations decoder_weights_dist vector".split()
)
ACTIVATION_FIELDS = {"bin_min", "bin_max", "bin_contains", "tokens", "values", "qualifying_token_index"}


def feature_row(feature: int, dead: bool, pointwise: bool) -> dict[str, Any]:
    return {
        "feature": feature,
        "density": None if dead else 0.125,
        "max_activation": None if dead else 50.0,
        "histogram": [] if dead else [2, 6, 2],
        "promoted_tokens": [" a", "<b>"],
        "promoted_logits": [2.0, 1.0 / 3],
        "suppressed_tokens": [" z"],
        "suppressed_logits": [-2.0],
        "main_dilation": None if dead or pointwise else 4.0,
        "scale_shares": [] if dead or pointwise else [0.75, 0.25],
        "context_share": None if dead or pointwise else 0.25,
        "kernel": [] if dead or pointwise else [0.5, 0.5],
        "mean_run_length": None if dead else float("nan"),
        "next_persistence_control": None if dead else 0.25,
        "impulse_response": None if dead else [0.5, 0.125],
        "persistence": [] if dead else [0.5, 0.25],
    }


def example_row(feature: int, kind: str, rank: int, values: list[float], pointwise: bool) -> dict[str, Any]:
    return {
        "feature": feature,
        "kind": kind,
        "rank": rank,
        "tokens": [f"t{i}" for i in range(len(values))],
        "activations": values,
        "peak": int(np.argmax(values)),
        "bias": 0.5,
        "hidden_pre": max(values),
        "scale_contributions": [] if pointwise else [max(values) - 1.5, 1.0],
        "offset_contributions": [] if pointwise else [max(values) - 1.5, 1.0],
    }


def write_facts(folder: Path, n_features: int = 10, pointwise: bool = False) -> Path:
    folder.mkdir(parents=True)
    about = {
        "format": "mtsae-exploration-1",
        "sae": "my-sae",
        "model": "embedded",
        "hook_name": "blocks.3.hook_resid_post",
        "d_sae": n_features,
        "context_size": 64,
        "dilations": [] if pointwise else [0.0, 4.0],
        "offsets": [0] if pointwise else [0, -4],
        "n_tokens": 100 * 63,  # of each context, all but position 0
        "corpora": [{"name": "kjv", "n_tokens": 600}, {"name": "sotu", "n_tokens": 400}],
        "histogram_edges": EDGES,
        "persistence_lags": [1, 2],
        "impulse_lags": [1, 4],
    }
    (folder / "explore.json").write_text(json.dumps(about))
    features = [feature_row(i, dead=i == 3, pointwise=pointwise) for i in range(n_features)]
    pq.write_table(
        pa.Table.from_pylist(features, parquet_schema(FeatureFacts)), folder / "features.parquet", compression="zstd"
    )
    examples = [
        example_row(i, kind, rank, values, pointwise)
        for i in range(n_features)
        if i != 3
        for kind, rank, values in (("top", 0, [0.0, 50.0, float(i)]), ("top", 1, [49.0]), ("sampled", 0, [0.0, 0.0, 5.0]))
    ]
    pq.write_table(pa.Table.from_pylist(examples, parquet_schema(Example)), folder / "examples.parquet", row_group_size=6)
    pq.write_table(parquet_schema(TextFacts).empty_table(), folder / "texts.parquet")
    return folder


def exported(tmp_path: Path, **settings: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    out = tmp_path / "out"
    out.mkdir()
    n_batches = export_neuronpedia(FactsFolder.open(write_facts(tmp_path / "facts", **settings)), out, batch_size=4)
    read = {
        kind: [json.loads(path.read_text()) for path in sorted(out.glob(f"{kind}-*.json"))] for kind in ("batch", "temporal")
    }
    assert len(read["batch"]) == n_batches
    return read["batch"], read["temporal"]


def test_batches_hold_every_feature_once_under_saedashboards_names(tmp_path: Path) -> None:
    batches, _ = exported(tmp_path)
    assert [[feature["feature_index"] for feature in batch["features"]] for batch in batches] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]
    for batch in batches:
        assert set(batch) == {"model_id", "layer", "sae_set", "sae_id_suffix", "features"}
        assert (batch["model_id"], batch["layer"], batch["sae_set"]) == ("embedded", 3, "my-sae")
        for feature in batch["features"]:
            assert set(feature) == FIELDS
            assert all(set(activation) == ACTIVATION_FIELDS for activation in feature["activations"])


def test_a_features_facts(tmp_path: Path) -> None:
    batches, temporal = exported(tmp_path)
    feature = batches[1]["features"][1]
    assert (feature["pos_str"], feature["pos_values"]) == ([" a", "<b>"], [2.0, 0.33333])
    assert (feature["neg_str"], feature["neg_values"]) == ([" z"], [-2.0])
    assert feature["frac_nonzero"] == 0.125
    assert feature["freq_hist_data_bar_heights"] == [2, 6, 2]
    assert feature["freq_hist_data_bar_values"] == [0.55, 5.5, 55.0]
    assert (feature["n_prompts_total"], feature["n_tokens_in_prompt"], feature["dataset"]) == (100, 64, "kjv, sotu")
    top, second, sampled = feature["activations"]
    assert top == {
        "tokens": ["t0", "t1", "t2"],
        "values": [0.0, 50.0, 5.0],
        "qualifying_token_index": 1,
        "bin_min": -1.0,
        "bin_max": 50.0,
        "bin_contains": -1.0,
    }
    assert second["values"] == [49.0]
    assert (sampled["bin_min"], sampled["bin_max"]) == (0.0, 10.0)
    assert sampled["bin_contains"] == 0.8
    facts = temporal[1]["features"][1]
    assert temporal[1]["dilations"] == [0.0, 4.0]
    assert (facts["feature_index"], facts["main_dilation"], facts["scale_shares"]) == (5, 4.0, [0.75, 0.25])
    assert facts["mean_run_length"] is None
    assert (facts["next_persistence_control"], facts["impulse_response"]) == (0.25, [0.5, 0.125])
    assert temporal[1]["impulse_lags"] == [1, 4]
    assert len(facts["examples"]) == 3
    assert facts["examples"][0]["bias"] + sum(facts["examples"][0]["scale_contributions"]) == facts["examples"][0]["hidden_pre"]


def test_a_dead_feature_is_empty(tmp_path: Path) -> None:
    batches, _ = exported(tmp_path)
    dead = batches[0]["features"][3]
    assert (dead["frac_nonzero"], dead["activations"], dead["freq_hist_data_bar_heights"]) == (0.0, [], [])


def test_a_pointwise_sae_has_no_temporal_files(tmp_path: Path) -> None:
    batches, temporal = exported(tmp_path, pointwise=True)
    assert len(batches) == 3
    assert temporal == []


def test_interval_shares_are_those_of_the_firings() -> None:
    generator = np.random.default_rng(0)
    edges = np.geomspace(0.01, 20, 60).tolist()
    values = generator.exponential(2.0, 20_000)
    histogram = np.histogram(values, [0, *edges[1:-1], np.inf])[0].tolist()
    highest = float(values.max())
    for low, high in zip(np.linspace(0, highest, 6)[:-1], np.linspace(0, highest, 6)[1:], strict=True):
        got = interval((low + high) / 2, highest, histogram, edges)
        assert got[:2] == pytest.approx((low, high))
        assert got[2] == pytest.approx(((values >= low) & (values < high)).mean(), abs=0.01)
    shares = [interval(highest * (i + 0.5) / 5, highest, histogram, edges)[2] for i in range(5)]
    assert sum(shares) == pytest.approx(1.0)


def test_no_facts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="mtsae explore"):
        FactsFolder.open(tmp_path)
    folder = write_facts(tmp_path / "old")
    (folder / "explore.json").write_text('{"format": "mtsae-exploration-0"}')
    with pytest.raises(DataError, match="mtsae-exploration-1"):
        FactsFolder.open(folder)


def test_command(mtsae: Callable[..., Any], tmp_path: Path) -> None:
    facts = write_facts(tmp_path / "facts")
    done = mtsae(
        "export-neuronpedia", facts, "--out", tmp_path / "np", "--model-id", "gpt", "--sae-set", "res", "--batch-size", "5"
    )
    assert done.code == 0, done.err
    assert "2 batches" in done.out
    assert json.loads((tmp_path / "np" / "batch-1.json").read_text())["model_id"] == "gpt"
    again = mtsae("export-neuronpedia", facts, "--out", tmp_path / "np")
    assert again.code == 2
    assert "got one with files" in again.error
    assert mtsae("export-neuronpedia", tmp_path, "--out", tmp_path / "other").code == 2
    assert not (tmp_path / "other").exists()
