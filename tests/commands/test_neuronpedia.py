"""Test `mtsae export-neuronpedia` from the output of `mtsae explore` to the files that Neuronpedia imports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtsae_lens.facts.exploration import Exploration


@pytest.fixture
def facts(mtsae: Callable[..., Any], tiny_sae_dir: Path, tmp_path: Path) -> Path:
    config = tmp_path / "c.yaml"
    config.write_text("n_text_contexts: 1\nn_attribution_contexts: 0\nn_sampled: 2\nbefore: 4\nafter: 2\n")
    small = ("--n-tokens", 320, "--n-examples", 2, "--n-ablated", 0, "--n-attributed", 0)
    outcome = mtsae("explore", tiny_sae_dir, "--config", config, "--split", "train", "--out", tmp_path / "facts", *small)
    assert outcome.code == 0, outcome.err
    return tmp_path / "facts"


def test_facts_become_batches(mtsae: Callable[..., Any], facts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = mtsae("export-neuronpedia", facts, "--out", out, "--batch-size", 20, "--model-id", "tiny")
    assert outcome.code == 0, outcome.err
    assert outcome.out.strip() == f"2 batches in {out}"
    assert {path.name for path in out.iterdir()} == {f"{kind}-{n}.json" for kind in ("batch", "temporal") for n in (0, 1)}
    opened = Exploration.open(facts)
    features = [f for n in (0, 1) for f in json.loads((out / f"batch-{n}.json").read_text())["features"]]
    temporal = [f for n in (0, 1) for f in json.loads((out / f"temporal-{n}.json").read_text())["features"]]
    assert json.loads((out / "batch-0.json").read_text())["model_id"] == "tiny"
    assert len(features) == len(temporal) == 32
    assert {feature["n_prompts_total"] for feature in features} == {10}
    for feature, over_time in zip(features, temporal, strict=True):
        examples = opened.examples(feature["feature_index"])
        assert [tuple(activation["tokens"]) for activation in feature["activations"]] == [e.tokens for e in examples]
        assert [e["hidden_pre"] for e in over_time["examples"]] == pytest.approx([e.hidden_pre for e in examples], rel=1e-4)
        assert feature["frac_nonzero"] == opened.feature(feature["feature_index"]).density


def test_mistakes(mtsae: Callable[..., Any], facts: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    assert (
        "got one with files; give a new or empty folder" in mtsae("export-neuronpedia", facts, "--out", tmp_path / "full").error
    )
    assert "mtsae explore" in mtsae("export-neuronpedia", tmp_path / "full", "--out", tmp_path / "new").error
    assert "expected --out, got none" in mtsae("export-neuronpedia", facts).error
