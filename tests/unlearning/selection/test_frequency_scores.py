"""Test scores from firing statistics against counts by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mtsae_lens.unlearning.selection.evidence import SelectionEvidence
from mtsae_lens.unlearning.selection.frequency_scores import Frequency, FrequencyDifference, FrequencyRatio, SquaredMeanRatio
from mtsae_lens.unlearning.selection.ranking import rank_by_frequency, ranking
from mtsae_lens.unlearning.selection.statistics import FiringStatistics

INF = torch.inf


def evidence(forget: list[tuple[float, float]], *retain: list[tuple[float, float]]) -> Any:
    """Make evidence from `(rate, mean activation)` of each feature; the retain corpora are near and far with equal statistics."""

    def statistics(values: list[tuple[float, float]]) -> FiringStatistics:
        rate, mean_activation = torch.tensor(values).T
        return FiringStatistics("c", rate, mean_activation, 1000)

    given = object.__new__(SelectionEvidence)  # no model is needed: the statistics are given
    given.__dict__.update(
        forget_statistics=statistics(forget), retain_statistics=tuple(statistics(values) for values in retain)
    )
    return given


FORGET = [(0.5, 1.0), (0.4, 2.0), (0.3, 1.0), (0.02, 5.0), (0.0, 0.0)]
NEAR = [(0.2, 1.0), (0.005, 1.0), (0.009, 50.0), (0.0, 0.0), (0.0, 0.0)]
FAR = [(0.0, 0.0), (0.001, 1.0), (0.02, 1.0), (0.001, 1.0), (0.0, 0.0)]


@pytest.mark.parametrize("corpora", [(NEAR, FAR), (FAR, NEAR)])
@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (Frequency(), [-INF, 0.4, -INF, 0.02, -INF]),
        (Frequency(max_retain_rate=0.001), [-INF, -INF, -INF, -INF, -INF]),
        (Frequency(max_retain_rate=0.5), [0.5, 0.4, 0.3, 0.02, -INF]),
        (FrequencyRatio(min_ratio=15), [-INF, 0.4, 0.3, 0.02, -INF]),
        (FrequencyRatio(min_ratio=2), [0.5, 0.4, 0.3, 0.02, -INF]),
        (FrequencyDifference(), [-INF, 0.395, -INF, 0.019, -INF]),
        (FrequencyDifference(min_activation_ratio=2), [0.3, 0.395, -INF, 0.019, -INF]),
        (SquaredMeanRatio(ratio_percentile=75), [-INF, 0.64, -INF, 0.01, -INF]),  # ratios 6.25, 25600, 0.44, 10000, 0
        (SquaredMeanRatio(ratio_percentile=100), [-INF, 0.64, -INF, -INF, -INF]),
        (SquaredMeanRatio(ratio_percentile=0), [0.25, 0.64, 0.09, 0.01, -INF]),
    ],
)
def test_scores_by_hand(score: Any, expected: list[float], corpora: Any) -> None:
    torch.testing.assert_close(score(evidence(FORGET, *corpora)), torch.tensor(expected))


def test_frequency_ratio_is_the_ranking_of_the_protocol() -> None:
    generator = torch.Generator().manual_seed(0)
    corpora = [[(rate, 1.0) for rate in torch.rand(100, generator=generator).pow(3).tolist()] for _ in range(3)]
    given = evidence(*corpora)
    ranked = rank_by_frequency(given.forget_statistics, given.retain_statistics, min_ratio=1.5)
    assert list(ranking(FrequencyRatio(min_ratio=1.5)(given))) == ranked
    assert 5 < len(ranked) < 95


def test_one_retain_corpus_more_never_makes_a_feature_eligible() -> None:
    generator = torch.Generator().manual_seed(1)
    corpora = [torch.rand(200, 2, generator=generator).pow(2).tolist() for _ in range(3)]
    for score in (Frequency(0.3), FrequencyRatio(1.5), FrequencyDifference(1.5)):
        few, more = (set(ranking(score(evidence(*corpora[:n])))) for n in (2, 3))
        assert more < few
