"""Test the true-positive rate at a fixed false-positive rate: by hand, by tokens read, and its interval."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.errors import DataError
from mtsae_lens.unlearning.measures.detection import Scores, detection


def scores(values: Tensor, names: list[str] | None = None, answers_at: int | None = None) -> Scores:
    """Scores of contexts; position 0 is masked."""
    n, length = values.shape
    kept = torch.ones(n, length, dtype=torch.bool)
    kept[:, 0] = False
    answers = None
    if answers_at is not None:
        answers = torch.zeros(n, length, dtype=torch.bool)
        answers[:, answers_at:] = True
    table = TokenTable("text", torch.ones(n, length, dtype=torch.long), tuple(names or map(str, range(n))), answers)
    return Scores(values, kept, table)


def noise(n: int, length: int = 20, seed: int = 0, drift: float = 0.0) -> Tensor:
    steps = torch.randn(n, length, generator=torch.Generator().manual_seed(seed)) + drift
    return steps.cumsum(dim=1)


def test_the_rate_by_hand() -> None:
    forget, near, far = noise(50, seed=1, drift=1.0), noise(200, seed=2), noise(400, seed=3)
    rows = detection(scores(forget), {"near": scores(near), "far": scores(far)})
    assert [row.after for row in rows] == [4, 8, 16]  # no context has 32 tokens
    for row in rows:
        values = [other[:, row.after].numpy() for other in (near, far)]
        thresholds = np.concatenate(values)
        share = [np.mean([(v > t).mean() for v in values]) for t in thresholds]
        threshold = min(t for t, s in zip(thresholds, share, strict=True) if s <= 0.01)
        assert row.rate == pytest.approx((forget[:, row.after].numpy() > threshold).mean())
        assert row.low <= row.rate <= row.high
        assert (row.n_forget, row.n_documents, row.n_other) == (50, 50, 600)
    assert rows[0].rate < rows[2].rate


def test_of_questions_the_position_before_the_answer_counts() -> None:
    forget, retain = torch.zeros(30, 10), torch.zeros(200, 10)
    forget[:, 5] = 1.0
    text = scores(noise(50))
    (row,) = detection(scores(forget, answers_at=6), {"retain": scores(retain, answers_at=6), "text": text})
    assert (row.after, row.rate, row.n_other) == (0, 1.0, 200)
    (late,) = detection(scores(forget, answers_at=7), {"retain": scores(retain, answers_at=6)})
    assert late.rate == 0.0
    with pytest.raises(DataError, match="expected other questions to compare with, got none"):
        detection(scores(forget, answers_at=6), {"text": text})


def test_a_score_that_says_nothing_has_the_false_positive_rate() -> None:
    rows = detection(scores(noise(1000, seed=1)), {"near": scores(noise(1000, seed=2))}, rate=0.2)
    assert all(row.rate == pytest.approx(0.2, abs=0.06) for row in rows)


def test_the_interval_resamples_documents() -> None:
    forget, near = noise(100, seed=1, drift=0.4), noise(300, seed=2)
    apart = detection(scores(forget), {"near": scores(near)})[1]
    together = detection(scores(forget, [str(n // 25) for n in range(100)]), {"near": scores(near)})[1]
    assert together.rate == apart.rate
    order = forget[:, 8].argsort()
    repeated = torch.cat([forget[order[[0, 1, -2, -1]]]] * 25)  # two documents are recognized, and two are not
    same = detection(scores(repeated, [str(n % 4) for n in range(100)]), {"near": scores(near)})[1]
    assert same.n_documents == 4
    assert same.high - same.low > 1.5 * (apart.high - apart.low)
    assert detection(scores(forget), {"near": scores(near)}, seed=0) == detection(
        scores(forget), {"near": scores(near)}, seed=0
    )


def test_the_interval_covers() -> None:
    """The true rate lies in about 95% of the intervals. After 8 tokens, sums of nine values are normal with variance 9."""
    rows = [
        detection(scores(noise(40, 9, 100 + s, 0.4)), {"near": scores(noise(80, 9, 900 + s))}, rate=0.1)[1] for s in range(40)
    ]
    truth = stats.norm.sf(stats.norm.isf(0.1) - 9 * 0.4 / 3)
    assert np.mean([row.low <= truth <= row.high for row in rows]) > 0.8
    shifted = stats.norm.sf(stats.norm.isf(0.1) - 9 * 0.9 / 3)
    assert np.mean([row.low <= shifted <= row.high for row in rows]) < 0.5  # the test could see a difference
