"""Test the overlap of choices: by hand, against simulated chance, and for SAEs with permuted features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mtsae_lens.data.token_tables import read_tokens
from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.unlearning.selection.evidence import SelectionEvidence
from mtsae_lens.unlearning.selection.stability import chance_jaccard, decoder_match, half_overlap, jaccard


def test_jaccard_by_hand() -> None:
    assert jaccard((1, 2, 3), (3, 4)) == 0.25
    assert jaccard((1, 2), (2, 1)) == 1
    assert jaccard((1,), (2,)) == 0
    with pytest.raises(ConfigError, match="empty"):
        jaccard((), ())


@pytest.mark.parametrize(("n_features", "d_sae"), [(8, 64), (50, 100), (100, 100)])
def test_chance_is_that_of_random_sets(n_features: int, d_sae: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw() -> list[int]:
        return torch.randperm(d_sae, generator=generator)[:n_features].tolist()

    mean = sum(jaccard(draw(), draw()) for _ in range(400)) / 400
    assert mean == pytest.approx(chance_jaccard(n_features, d_sae), abs=0.01)


@dataclass(frozen=True)
class FirstOrLast:
    """Chooses by a property of the text: low features if the forget table holds the document named, high ones otherwise."""

    document: str
    name = "first_or_last"

    def __call__(self, evidence: SelectionEvidence) -> Tensor:
        score = torch.arange(32.0)
        return -score if self.document in evidence.forget.documents else score


@dataclass(frozen=True)
class Same:
    """A score that chooses the same features for every text."""

    name = "same"

    def __call__(self, evidence: SelectionEvidence) -> Tensor:
        return torch.arange(32.0)


def test_half_overlap_is_that_of_the_choices_from_each_half(lm: Any, text_file: Path, sea_file: Path) -> None:
    tables = [read_tokens(str(path), "select", lm.cutter, 6) for path in (text_file, sea_file)]
    evidence = SelectionEvidence(lm, tables[0], far=(tables[1],))
    generator = torch.Generator().manual_seed(0)
    assert half_overlap(Same(), evidence, 8, generator) == 1
    split = FirstOrLast(tables[0].documents[0])
    assert half_overlap(split, evidence, 8, generator) == 0
    assert half_overlap(split, evidence, 20, generator) == pytest.approx(8 / 32)
    with pytest.raises(DataError, match="expected 33"):
        half_overlap(Same(), evidence, 33, generator)


def test_an_sae_in_another_order_with_other_signs_and_lengths_matches() -> None:
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.randn(200, 16, generator=generator)
    order = torch.randperm(200, generator=generator)
    other = W_dec[order] * (torch.randn(200, 1, generator=generator) * 3)
    chosen = [3, 50, 120, 7]
    same = [int((order == feature).nonzero()) for feature in chosen]
    match = decoder_match(W_dec, chosen, other, same[::-1], generator)
    assert match.cosine == pytest.approx(1, abs=1e-5)
    assert 0.2 < match.chance < 0.6
    strangers = decoder_match(torch.randn(200, 16, generator=generator), chosen, other, same, generator)
    assert strangers.cosine < 0.7
    assert strangers.chance == pytest.approx(match.chance, abs=0.1)


def test_match_by_hand() -> None:
    W_dec = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    other = torch.tensor([[1.0, 1.0], [0.0, -3.0], [5.0, 0.0]])
    half = 2**-0.5
    assert decoder_match(W_dec, [0, 1], other, [0, 1], torch.Generator()).cosine == pytest.approx((half + 1) / 2)
    assert decoder_match(W_dec, [0], other, [1], torch.Generator()).cosine == pytest.approx(0)


@pytest.mark.wrong_shapes
def test_decoders_that_cannot_be_compared_are_refused() -> None:
    W_dec = torch.randn(4, 3)
    with pytest.raises(ConfigError, match="3 and 2 dimensions"):
        decoder_match(W_dec, [0], torch.randn(4, 2), [0], torch.Generator())
    with pytest.raises(ConfigError, match="empty"):
        decoder_match(W_dec, [], W_dec, [0], torch.Generator())
    with pytest.raises(ConfigError, match="from 0 to 3"):
        decoder_match(W_dec, [4], W_dec, [0], torch.Generator())
