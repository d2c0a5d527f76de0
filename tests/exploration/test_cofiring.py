"""The phi coefficient is the correlation of two features' firing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mtsae_lens.exploration.cofiring import CofiringSample, sampling_interval
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
            torch.testing.assert_close(scores[feature], expected)
            torch.testing.assert_close(correlation[feature, others[feature]], expected)
        assert scores[~alive].isnan().all()


def test_how_many_tokens_are_taken() -> None:
    assert sampling_interval(50_000) == 1
    assert sampling_interval(1_000_000) == 10
