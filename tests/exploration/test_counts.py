"""Test counts against loops over tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mtsae_lens.exploration.corpora import Corpora
from mtsae_lens.exploration.plan import PERSISTENCE_LAGS


@pytest.fixture(scope="module")
def acts(lm: Any, corpora: Corpora) -> list[torch.Tensor]:
    """Activations by corpus; NaN at positions that do not count."""
    found = []
    for corpus in range(2):
        tokens = torch.tensor([ids for _, ids in corpora.contexts(corpus)])
        found.append(lm.feature_acts(tokens).masked_fill(lm.masked(tokens).unsqueeze(-1), torch.nan))
    return found


def test_firings_by_corpus(look: Any, lm: Any, corpora: Corpora, acts: list[torch.Tensor]) -> None:
    counts = look(lm, corpora, batch_size=3).counts
    assert counts.n_tokens.tolist() == [int((~part[..., 0].isnan()).sum()) for part in acts]
    assert min(counts.n_tokens.tolist()) < 10 * 31  # a separator stands somewhere
    assert torch.equal(counts.n_active, torch.stack([(part > 0).sum(dim=(0, 1)) for part in acts]))
    every = torch.cat(acts).flatten(0, 1).nan_to_num()
    torch.testing.assert_close(counts.total.float(), every.sum(dim=0), rtol=1e-5, atol=1e-5)
    assert torch.equal(counts.maximum, every.amax(dim=0))
    density = (counts.n_active + 0.5) / counts.n_tokens[:, None]
    torch.testing.assert_close(counts.selectivity, (density[0] / density[1]).log2())
    torch.testing.assert_close(counts.density[1].float(), (acts[1] > 0).sum(dim=(0, 1)) / counts.n_tokens[1])


def test_histogram(look: Any, lm: Any, corpora: Corpora, acts: list[torch.Tensor]) -> None:
    counts = look(lm, corpora).counts
    assert torch.equal(counts.histogram.sum(dim=1), counts.n_active_in_all)
    assert (counts.edges.diff() > 0).all()
    assert (counts.edges[1:] / counts.edges[:-1]).std() < 1e-6
    feature = int(counts.n_active_in_all.argmax())
    values = torch.cat(acts)[..., feature].flatten()
    for number in (10, 30, 40, 47):
        low, high = counts.edges[number], counts.edges[number + 1] if number < 47 else torch.inf
        assert counts.histogram[feature, number] == ((values > max(low, 0)) & (values <= high)).sum()


def test_runs_and_persistence(look: Any, lm: Any, corpora: Corpora, acts: list[torch.Tensor]) -> None:
    counts = look(lm, corpora).counts
    n_runs = torch.zeros(32, dtype=torch.long)
    persisted, could = torch.zeros(2, len(PERSISTENCE_LAGS), 32, dtype=torch.long)
    for context in torch.cat(acts):
        counted = ~context[:, 0].isnan()
        for t in range(32):
            fires = context[t] > 0
            n_runs += fires & ~(context[t - 1] > 0)
            for number, lag in enumerate(PERSISTENCE_LAGS):
                if t + lag < 32 and counted[t : t + lag + 1].all():
                    could[number] += fires
                    persisted[number] += fires & (context[t + lag] > 0)
    assert torch.equal(counts.n_runs, n_runs)
    assert torch.equal(counts.could_persist, could)
    assert torch.equal(counts.persisted, persisted)
    assert persisted.sum() > 20


@pytest.mark.parametrize("batch_size", [1, 3])
def test_control_of_persistence_takes_the_next_context_of_the_batch(
    look: Any, lm: Any, corpora: Corpora, acts: list[torch.Tensor], batch_size: int
) -> None:
    counts = look(lm, corpora, batch_size=batch_size).counts
    fired, could = torch.zeros(2, 32, dtype=torch.long)
    for part in acts:
        for batch in part.split(batch_size):
            for context, other in zip(batch, batch.roll(-1, dims=0), strict=True):
                for t in range(31):
                    if len(batch) > 1 and not other[t + 1, 0].isnan():
                        could += context[t] > 0
                        fired += (context[t] > 0) & (other[t + 1] > 0)
    assert torch.equal(counts.could_elsewhere, could)
    assert torch.equal(counts.fired_elsewhere, fired)
    assert (fired.sum() > 20) == (batch_size > 1)
