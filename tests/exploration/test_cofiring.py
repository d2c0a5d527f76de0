"""Test that the phi coefficient is the correlation of two features' firings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mtsae_lens.exploration import cofiring
from mtsae_lens.exploration.cofiring import CofiringSample, choose_sampling_interval
from mtsae_lens.exploration.corpora import Corpora
from mtsae_lens.exploration.firings import find_firings, read_batch


def sample_of(lm: Any, corpora: Corpora, every: int) -> tuple[CofiringSample, torch.Tensor]:
    """The sample, and by hand which features fire at its tokens."""
    sample, fires = CofiringSample(), []
    for batch in corpora.batches(3):
        reading = read_batch(lm, batch.tokens)
        sample.add(batch.first_context, every, reading, find_firings(reading.feature_acts))
        taken = [row for row in range(len(batch.tokens)) if (batch.first_context + row) % every == 0]
        fires.append(reading.feature_acts[taken][reading.kept[taken]] > 0)
    return sample, torch.cat(fires)


def test_phi_is_the_correlation(lm: Any, corpora: Corpora) -> None:
    for every in (1, 3):
        sample, fires = sample_of(lm, corpora, every)
        assert sample.n_tokens == len(fires)
        scores, others = sample.strongest(32, 4)
        with np.errstate(all="ignore"):
            correlation = torch.from_numpy(np.corrcoef(fires.numpy().T.astype(float))).float()
        correlation.fill_diagonal_(torch.nan)
        alive = fires.any(dim=0) & ~fires.all(dim=0)
        assert alive.sum() > 10
        for feature in alive.nonzero().flatten().tolist():
            expected = correlation[feature].nan_to_num(nan=-1).topk(4).values
            listed = expected > 0
            torch.testing.assert_close(scores[feature][listed], expected[listed])
            torch.testing.assert_close(correlation[feature, others[feature][listed]], expected[listed])
            assert scores[feature][~listed].isnan().all()
        assert scores[~alive].isnan().all()


@pytest.mark.parametrize("pairs_at_once", [1, 100, 1_000_000])
def test_only_what_fires_together_is_looked_at_and_nothing_changes(pairs_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the formula on all pairs, written out: the very same numbers, in groups of any size."""
    monkeypatch.setattr(cofiring, "_PAIRS_AT_ONCE", pairs_at_once)
    generator = torch.Generator().manual_seed(0)
    rate = torch.cat([torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.rand(36, generator=generator) ** 2])
    fires = torch.rand(200, 40, generator=generator) < rate
    tokens, features = fires.nonzero().int().unbind(dim=1)
    scores, others = CofiringSample(200, [tokens[:500], tokens[500:]], [features[:500], features[500:]]).strongest(40, 5)
    both, count = fires.double().T @ fires.double(), fires.double().sum(dim=0)
    spread = (count * (200 - count)).sqrt()
    phi = (200 * both - count[:, None] * count) / (spread[:, None] * spread)
    phi = phi.fill_diagonal_(0).nan_to_num(nan=0.0, posinf=0.0)
    for feature in range(40):
        order = sorted((other for other in range(40) if phi[feature, other] > 0), key=lambda o: (-phi[feature, o].item(), o))[
            :5
        ]
        assert scores[feature][: len(order)].tolist() == phi[feature, order].float().tolist()
        assert others[feature][: len(order)].tolist() == order
        assert scores[feature][len(order) :].isnan().all()
    assert (~scores.isnan()).any(dim=1).sum() > 30


def test_how_many_tokens_are_taken() -> None:
    assert choose_sampling_interval(50_000) == 1
    assert choose_sampling_interval(1_000_000) == 10
