"""Test the analysis of a typed text, in Python and in the notebook's text box."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.exploration.live import explain
from mtsae_lens.exploration.probe import STRONGEST, FeatureProbe
from mtsae_lens.facts.exploration import Exploration
from mtsae_lens.facts.folder import FactsFolder

TEXT = "the king sat under the old tree"


@pytest.mark.parametrize("architecture", ["mtsae", "topk"])
def test_explain(random_lm: Any, architecture: str, tokenizer: Any) -> None:
    lm = random_lm(architecture)
    read = explain(lm, TEXT)
    tokens = torch.tensor([[0, *tokenizer(TEXT, add_special_tokens=False)["input_ids"]]])
    assert "".join(read.tokens[1:]) == TEXT
    acts = lm.feature_acts(tokens)[0]
    torch.testing.assert_close(read.feature_acts, acts)
    losses = lm.model(tokens, return_type="loss", loss_per_token=True, prepend_bos=False)[0]
    torch.testing.assert_close(read.nll[1:], losses)
    assert math.isnan(read.nll[0])
    values, features = acts[3].topk(2)
    assert read.strongest(3, 2) == [(f, pytest.approx(v)) for f, v in zip(features.tolist(), values.tolist(), strict=True)]
    assert read.strongest(0) == []  # masked
    assert read.strongest_anywhere(1)[0][1] == pytest.approx(acts.max().item())
    assert read.activations(7) == pytest.approx(acts[:, 7].tolist())
    for feature in (int(features[0]), 7):
        found = read.contributions(feature, 3)
        if architecture == "mtsae":
            assert list(found.scales) == [0, 1, 2, 4, 8]
            assert list(found.offsets) == [0, -1, -2, -4, -8, -16]
            for parts in (found.scales, found.offsets):
                assert sum(parts.values()) + (found.bias or 0) == pytest.approx(found.hidden_pre, abs=1e-5)
        else:
            assert (found.scales, found.offsets) == ({}, {})
    assert read.contributions(int(features[0]), 3).hidden_pre == pytest.approx(values[0].item(), abs=1e-5)


def test_what_cannot_be_explained(lm: Any) -> None:
    with pytest.raises(DataError, match="expected at least one token"):
        explain(lm, "")
    with pytest.raises(DataError, match=r"expected at most 32 tokens, the context size of the SAE, got .*; give a shorter one"):
        explain(lm, TEXT * 9)
    for text, message in (
        (["a", "b"], "the text to be one string, got a list"),
        (None, "got a NoneType"),
        (b"a", "got a bytes"),
        ("caf\udce9 au lait", r"lone surrogate '\\udce9' \(the byte 0xe9, which is not UTF-8\) at character 4"),
        ("\ud83d", r"lone surrogate '\\ud83d' at character 1"),
    ):
        with pytest.raises(DataError, match=message) as refused:
            explain(lm, text)  # type: ignore[arg-type]
        assert "\n" not in str(refused.value)
    read = explain(lm, TEXT)
    with pytest.raises(ConfigError, match="from 0 to 31"):
        read.activations(32)
    with pytest.raises(ConfigError, match=r"expected a position between 0 and .*, got 99"):
        read.contributions(0, 99)


def test_the_box(lm: Any) -> None:
    box = FeatureProbe(lm)
    assert box.tokens == []
    box.text = TEXT
    read = explain(lm, TEXT)
    assert box.tokens == list(read.tokens)
    assert box.feature == STRONGEST
    assert box.activations == pytest.approx(read.feature_acts.amax(dim=1).tolist())
    box.position = 3
    feature, value = read.strongest(3)[0]
    assert box.strongest[0] == [feature, value, ""]
    assert box.contributions["feature"] == feature
    assert [name for name, _ in box.contributions["scales"]] == ["token", *(f"dilation {d}" for d in (1, 2, 4, 8))]
    assert sum(v for _, v in box.contributions["offsets"]) + box.contributions["bias"] == pytest.approx(value, abs=1e-5)
    box.feature = 5
    assert box.activations == pytest.approx(read.activations(5))
    assert box.contributions["feature"] == 5
    box.feature = 99
    assert "from 0 to 31" in box.error
    box.feature = STRONGEST
    assert box.error == ""
    box.text = TEXT * 9
    assert "give a shorter one" in box.error
    assert (box.tokens, box.strongest, box.contributions) == ([], [], {})
    box.text = "the cat"
    assert box.error == ""
    assert box.position == -1
    assert FeatureProbe(lm, text=TEXT).tokens == list(read.tokens)


def test_the_box_refuses_facts_of_another_sae(lm: Any) -> None:
    with pytest.raises(ConfigError, match="expected facts about 32 features, got 7"):
        FeatureProbe(lm, Exploration(FactsFolder(None, {"d_sae": 7})))  # type: ignore[arg-type]


def test_a_text_without_bos(lm: Any) -> None:
    bare = dataclasses.replace(lm, cutter=dataclasses.replace(lm.cutter, prepend_bos=False))
    assert "".join(explain(bare, TEXT).tokens) == TEXT
