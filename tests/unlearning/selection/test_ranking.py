"""Test which features are chosen, which random features are drawn, and how often the gate opens by mistake."""

from __future__ import annotations

import pytest
import torch

from mtsae_lens.errors import DataError
from mtsae_lens.unlearning.selection.ranking import (
    MIN_RATE,
    matched_random,
    rank_by_frequency,
    ranking,
    select,
)
from mtsae_lens.unlearning.selection.statistics import FiringStatistics


def rates(*values: float) -> FiringStatistics:
    rate = torch.tensor(values, dtype=torch.float32)
    return FiringStatistics("c", rate, torch.ones_like(rate), 1000)


def test_rank_by_frequency_wants_the_ratio_to_every_retain_text() -> None:
    forget = rates(0.5, 0.4, 0.3, 0.2, 0.0)
    one, other = rates(0.01, 0.2, 0.01, 0.0, 0.0), rates(0.02, 0.0, 0.3, 0.0, 0.0)
    assert rank_by_frequency(forget, [one, other], min_ratio=5) == [0, 3]
    assert rank_by_frequency(forget, [one], min_ratio=5) == [0, 2, 3]
    assert rank_by_frequency(forget, [one, other], min_ratio=1) == [0, 1, 2, 3]
    assert rank_by_frequency(forget, [one, other], min_ratio=1e9) == []


def test_rank_by_frequency_is_most_frequent_first() -> None:
    forget = rates(0.1, 0.3, 0.2, 0.4)
    assert rank_by_frequency(forget, [rates(0, 0, 0, 0)]) == [3, 1, 2, 0]


def test_features_that_never_fire_are_not_ranked() -> None:
    assert rank_by_frequency(rates(0.0, MIN_RATE / 2), [rates(0.0, 0.0)], min_ratio=0.0) == [1]


@pytest.mark.parametrize("seed", range(10))
def test_matched_random_is_disjoint_matched_and_seeded(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    forget = rates(*torch.rand(300, generator=generator).pow(3).tolist())
    chosen = torch.randperm(300, generator=generator)[:40].tolist()
    drawn = matched_random(forget, chosen, torch.Generator().manual_seed(seed))
    assert len(drawn) == len(set(drawn)) == 40
    assert not set(drawn) & set(chosen)
    assert drawn == matched_random(forget, chosen, torch.Generator().manual_seed(seed))
    assert drawn != matched_random(forget, chosen, torch.Generator().manual_seed(seed + 1))
    log_rate = forget.rate.clamp(min=MIN_RATE).log()
    distance = (log_rate[chosen] - log_rate[list(drawn)]).abs()
    random = (log_rate[chosen] - log_rate[torch.randperm(300, generator=generator)[:40]]).abs()
    assert distance.mean() < 0.3 * random.mean()


def test_matched_random_takes_what_there_is() -> None:
    drawn = matched_random(rates(0.1, 0.2, 0.3, 0.4, 0.5), [0, 1, 2], torch.Generator().manual_seed(0))
    assert set(drawn) == {3, 4}
    assert matched_random(rates(0.1, 0.2), [0, 1], torch.Generator()) == ()


def test_twins_fire_as_often_and_as_strongly() -> None:
    """Rate and mean activation are unrelated here, so a match in rate alone does not match the activation."""
    generator = torch.Generator().manual_seed(3)
    rate, strength = torch.rand(2, 600, generator=generator).mul(6).sub(7).exp()
    forget = FiringStatistics("c", rate, strength, 1000)
    chosen = list(range(30))
    drawn = list(matched_random(forget, chosen, torch.Generator().manual_seed(0)))
    for values in (rate.log(), strength.log()):
        assert (values[drawn] - values[chosen]).abs().mean() < 0.2 * values.std()
    by_rate_alone = FiringStatistics("c", rate, torch.ones_like(rate), 1000)
    worse = list(matched_random(by_rate_alone, chosen, torch.Generator().manual_seed(0)))
    assert (strength.log()[worse] - strength.log()[chosen]).abs().mean() > 0.5 * strength.log().std()


def test_the_unit_of_activation_changes_no_twin() -> None:
    generator = torch.Generator().manual_seed(3)
    rate, strength = torch.rand(2, 200, generator=generator) + 0.01
    one, other = (
        matched_random(FiringStatistics("c", rate, scale * strength, 1000), [1, 2, 3], torch.Generator().manual_seed(0))
        for scale in (1.0, 1000.0)
    )
    assert one == other


SCORE = torch.tensor([0.5, -torch.inf, 2.0, 0.5, -1.0, -torch.inf, 7.0])


def test_ranking_is_by_score_then_number_and_leaves_out_what_is_not_eligible() -> None:
    assert ranking(SCORE) == (6, 2, 0, 3, 4)
    assert ranking(torch.full((3,), -torch.inf)) == ()
    many = torch.randint(5, (4000,), generator=torch.Generator().manual_seed(0)).float()
    assert list(ranking(many)) == sorted(range(4000), key=lambda feature: (-many[feature].item(), feature))


def test_select_gives_the_first_of_the_ranking() -> None:
    assert select(SCORE, 2) == (6, 2)
    assert select(SCORE, 5) == ranking(SCORE)
    with pytest.raises(DataError, match="expected 6 eligible features, got 5 of 7"):
        select(SCORE, 6)


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(DataError, match="expected a number for each feature"):
        ranking(torch.tensor([0.0, float("nan")]))
