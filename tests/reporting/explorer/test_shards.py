"""Test that the page gets the values of the tables."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from facts_folder import write_facts

from mtsae_lens.facts.folder import FactsFolder
from mtsae_lens.reporting.explorer.shards import (
    make_example_shard,
    make_feature_shard,
    make_list_shard,
    make_text_index,
    make_text_shard,
)


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> FactsFolder:
    return FactsFolder.open(write_facts(tmp_path_factory.mktemp("facts"), d_sae=20))


@pytest.fixture(scope="module")
def rows(facts: FactsFolder) -> dict[int, list[dict[str, Any]]]:
    found = defaultdict(list)
    for row in facts.examples():
        found[row["feature"]].append(row)
    return found


def test_the_list_has_a_value_per_feature(facts: FactsFolder) -> None:
    columns = make_list_shard(list(facts.features()))
    assert {len(column) for column in columns.values()} == {20}
    assert columns["n_active"][3] == 1003
    assert columns["n_active"][16] == 0
    assert columns["max_activation"][16] is None
    assert columns["scale_shares"][16] == []


def test_features_keep_their_facts(facts: FactsFolder) -> None:
    record = make_feature_shard(list(facts.features()))[3]
    assert record["histogram"] == list(facts.features())[3]["histogram"]
    assert record["density"] == pytest.approx(list(facts.features())[3]["density"], rel=1e-3)


def test_examples_are_sparse_and_whole(facts: FactsFolder, rows: dict[int, list[dict[str, Any]]]) -> None:
    edges = facts.about["histogram_edges"]
    shard = make_example_shard(list(facts.features()), rows, edges)
    assert shard[16] == []
    for example, row in zip(shard[3], rows[3], strict=True):
        dense = np.zeros(len(row["tokens"]))
        dense[example["fired"]] = example["activations"]
        assert dense == pytest.approx(np.array(row["activations"]), rel=1e-3)
        parts = np.array(row["token_scale_contributions"]).reshape(len(row["tokens"]), -1)
        assert np.array(example["token_scales"]) == pytest.approx(parts[example["fired"]], rel=1e-3)
        assert sum(example["scale_contributions"]) + example["bias"] == pytest.approx(example["hidden_pre"], abs=1e-5)
        assert sum(example["offset_contributions"]) + example["bias"] == pytest.approx(example["hidden_pre"], abs=1e-5)
    quantiles = [example["quantile"] for example in shard[3] if example["kind"] == "top"]
    assert quantiles == sorted(quantiles, reverse=True)


def test_a_pointwise_sae_has_no_parts(tmp_path: Path) -> None:
    facts = FactsFolder.open(write_facts(tmp_path, d_sae=2, dilations=()))
    row = next(facts.examples())
    example = make_example_shard(list(facts.features())[:1], {0: [row]}, [])[0][0]
    assert example["token_scales"] == example["scale_contributions"] == []
    assert example["quantile"] is None


def test_texts(facts: FactsFolder) -> None:
    texts = list(facts.texts())
    assert make_text_shard(texts)[0]["tokens"] == texts[0]["tokens"]
    assert make_text_shard(texts)[0]["nll"][0] is None
    assert "".join(texts[0]["tokens"]).strip().startswith(make_text_index(texts)[0]["start"])


@pytest.mark.parametrize(
    ("first", "features", "start"),
    [("<|endoftext|>", [], "sea"), ("<s>", [], "sea"), ("<s>", [4], "<s> sea"), ("<b x>", [], "<b x> sea")],
)
def test_a_text_is_listed_by_its_first_word(first: str, features: list[int], start: str) -> None:
    text = {"corpus": 0, "document": "d", "tokens": [first, " sea"], "features": [features, [1]]}
    assert make_text_index([text])[0]["start"] == start


def test_only_the_strongest_example_is_above_all(facts: FactsFolder, rows: dict[int, list[dict[str, Any]]]) -> None:
    features = [{**list(facts.features())[3], "max_activation": rows[3][0]["activations"][rows[3][0]["peak"]]}]
    found = [example["quantile"] for example in make_example_shard(features, rows, facts.about["histogram_edges"])[0]]
    assert found[0] == 1
    assert max(found[1:]) < 1
