"""Test examples without a folder against those of the pass, and as cards."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from mtsae_lens.data.token_tables import read_tokens
from mtsae_lens.errors import ConfigError
from mtsae_lens.exploration.examples import top_examples
from mtsae_lens.exploration.survey import Survey
from mtsae_lens.reporting.features import feature_cards


def test_memory_does_not_grow_with_the_corpus(random_lm: Any, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, sizes = random_lm("mtsae"), []
    original = Survey.add

    def add(self: Survey, batch: Any) -> None:
        original(self, batch)
        parts = [*(vars(self.lists[kind]) for kind in self.lists), vars(self.counts), vars(self.cofiring)]
        tensors = [value for part in parts for value in part.values()]
        flat = [tensor for value in tensors for tensor in (value if isinstance(value, list) else [value])]
        sizes.append(sum(tensor.numel() for tensor in flat if isinstance(tensor, torch.Tensor)))

    monkeypatch.setattr(Survey, "add", add)
    top_examples(lm, read_tokens(str(text_file), "train", lm.cutter, 24), [0], n_examples=2)
    assert len(sizes) == 6
    assert len(set(sizes)) == 1


@pytest.mark.parametrize("architecture", ["mtsae", "topk"])
def test_top_examples(random_lm: Any, text_file: Path, architecture: str) -> None:
    lm = random_lm(architecture)
    table = read_tokens(str(text_file), "select", lm.cutter, 6)
    acts = lm.feature_acts(table.tokens)
    features = [9, *acts.amax(dim=(0, 1)).topk(3).indices.tolist()]
    found = top_examples(lm, table, features, n_examples=2, before=3, after=1)
    assert [one.feature for one in found] == features
    for one in found:
        n_active = int((acts[..., one.feature] > 0).sum())
        assert one.density == pytest.approx(n_active / int((~lm.masked(table.tokens)).sum()))
        peaks = acts[..., one.feature].amax(dim=1).sort(descending=True).values[:2]
        assert [e.activations[e.peak] for e in one.examples] == pytest.approx([p for p in peaks.tolist() if p > 0])
        if architecture == "topk":
            assert one.main_scale is None
        elif one.examples:
            totals = [sum(e.scale_contributions[k] for e in one.examples) for k in range(5)]
            assert one.main_scale == one.dilations[totals.index(max(totals))]
    cards = feature_cards(found)
    assert cards.count('<div class="feature">') == sum(bool(one.examples) for one in found)
    assert ("at the peak: the token" in cards) == (architecture == "mtsae")
    with pytest.raises(ConfigError, match="from 0 to 23"):
        top_examples(lm, table, [24])


def test_the_document_of_an_example_is_that_of_its_peak(random_lm: Any, text_file: Path) -> None:
    lm = random_lm("mtsae")
    table = read_tokens(str(text_file), "train", lm.cutter, 8)
    packed = dataclasses.replace(table, spans=tuple(((f"first {row}", 0), (f"second {row}", 12)) for row in range(len(table))))
    found = [example for card in top_examples(lm, packed, range(8), n_examples=4) for example in card.examples]
    assert {example.document.split()[0] for example in found} == {"first", "second"}
    assert all(example.document.startswith("first" if example.position < 12 else "second") for example in found)
