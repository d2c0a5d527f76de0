"""Test recovery scores: 1 for the truth, chance for noise, and the oracle against its definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sae_lens import TopKSAE, TopKSAEConfig

from mtsae_lens.data.planted import PlantedConfig, PlantedFeatures
from mtsae_lens.errors import ConfigError
from mtsae_lens.evaluation.recovery import PlantedSplits, best_threshold, f1_score, linear_oracle, match_features, recover

EASY = PlantedConfig(
    d_in=40, context_size=32, durations=(1, 8), n_features_per_duration=10, persistent_rate=0.05, lags=(), n_cues=0, noise=0.01
)
PATTERNS = PlantedConfig(
    d_in=32,
    context_size=48,
    durations=(2,),
    n_features_per_duration=4,
    lags=((1, 3),),
    n_patterns_per_lags=6,
    n_cues=8,
    noise=0.3,
)


@pytest.fixture(scope="module")
def easy() -> PlantedSplits:
    return PlantedSplits(PlantedFeatures(EASY), n_sequences=64)


def sae_of(directions: torch.Tensor, k: int) -> TopKSAE:
    """Encodes with the pseudo-inverse of its decoder: exact where directions are independent."""
    d_sae, d_in = directions.shape
    sae = TopKSAE(TopKSAEConfig(d_in=d_in, d_sae=d_sae, k=k, apply_b_dec_to_input=False))
    sae.W_dec.data = directions.clone()
    sae.W_enc.data = torch.linalg.pinv(directions)
    sae.b_enc.data.zero_()
    sae.b_dec.data.zero_()
    return sae


def test_the_true_dictionary_scores_one(easy: PlantedSplits) -> None:
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    found = recover(sae_of(easy.features.dictionary.feature_vectors[order], k=12), easy)
    assert torch.equal(order[found.matched], torch.arange(20))
    assert (found.correlation > 0.98).all()
    assert (found.f1 > 0.98).all()
    assert (found.onset_recall > 0.98).all()
    assert (found.cosine > 0.999).all()
    assert found.mcc > 0.999
    assert found.explained_variance > 0.98
    assert found.explained_variance_clean > found.explained_variance


def test_a_feature_that_never_fires_detects_nothing(easy: PlantedSplits) -> None:
    dead = sae_of(easy.features.dictionary.feature_vectors, k=4)
    dead.W_enc.data.zero_()
    found = recover(dead, easy)
    assert (found.f1 == 0).all()
    assert (found.onset_recall == 0).all()


def test_an_sae_that_reads_nothing_is_at_chance(easy: PlantedSplits) -> None:
    """At a rate of p, to call a feature everywhere has an F1 of 2 p / (1 + p), and no threshold on a constant does better."""
    blind = sae_of(easy.features.dictionary.feature_vectors, k=4)
    blind.W_enc.data.zero_()
    blind.b_enc.data = torch.linspace(1, 2, 20)
    found = recover(blind, easy)
    assert (found.correlation.abs() < 1e-5).all()
    rate = (easy.test.feature_acts[:, 1:] > 0).float().mean(dim=(0, 1))
    assert (found.f1 <= 2 * rate / (1 + rate) + 1e-6).all()
    assert found.explained_variance < 0


def test_a_random_sae_is_far_from_the_truth(easy: PlantedSplits) -> None:
    random = torch.nn.functional.normalize(torch.randn(24, 40, generator=torch.Generator().manual_seed(99)), dim=-1)
    found = recover(sae_of(random, k=4), easy)
    assert found.matched.unique().numel() == 20
    assert found.f1.mean() < 0.6
    assert found.correlation.mean() < 0.6
    assert found.mcc < 0.5
    assert found.explained_variance < 0.6


def test_too_few_features_cannot_be_matched(easy: PlantedSplits) -> None:
    with pytest.raises(ConfigError, match=r"expected an SAE with at least 20 features.*got 19; train a wider SAE"):
        recover(sae_of(easy.features.dictionary.feature_vectors[:19], k=2), easy)


def test_splits_are_of_the_same_features_and_share_no_sequence(easy: PlantedSplits) -> None:
    assert easy.select is easy.select
    assert not torch.equal(easy.select.h, easy.test.h)
    again = PlantedSplits(PlantedFeatures(EASY), n_sequences=64)
    assert torch.equal(again.select.h, easy.select.h)
    assert torch.equal(again.test.h, easy.test.h)


# thresholds -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200, derandomize=True)
@given(
    pairs=st.lists(
        st.tuples(st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(-1e6, 1e6, width=32)), st.booleans()),
        min_size=1,
        max_size=12,
    )
)
@example(pairs=[(1.0, True), (float(torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))), False)])
@example(pairs=[(1e10, True), (1e10, False)])
@example(pairs=[(0.0, False), (0.0, True), (0.0, False)])
def test_the_best_threshold_is_the_best_of_all(pairs: list[tuple[float, bool]]) -> None:
    scores = torch.tensor([score for score, _ in pairs], dtype=torch.float32)
    truth = torch.tensor([true for _, true in pairs])
    found = f1_score(scores > best_threshold(scores, truth), truth)
    every = [f1_score(scores >= score, truth) for score in scores]
    assert found == max(every)


def test_thresholds_lie_between_scores() -> None:
    assert best_threshold(torch.tensor([0.0, 1.0, 3.0, 5.0]), torch.tensor([False, False, True, True])) == 2
    assert best_threshold(torch.tensor([3.0, 5.0]), torch.tensor([True, True])) < 3


def test_f1_score() -> None:
    called, truth = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    assert f1_score(called, truth) == 0.5
    assert f1_score(truth, truth) == 1
    assert f1_score(~truth, truth) == 0
    assert f1_score(torch.ones(4, dtype=torch.bool), torch.tensor([True, False, False, False])) == pytest.approx(
        2 * 0.25 / 1.25
    )
    assert f1_score(~torch.ones(4, dtype=torch.bool), ~torch.ones(4, dtype=torch.bool)) == 0


# matching -------------------------------------------------------------------------------------------------------------


def test_match_features() -> None:
    torch.manual_seed(0)
    planted = torch.rand(50, 3, dtype=torch.float64)
    acts = torch.stack([-planted[:, 0], 0 * planted[:, 0], 5 * planted[:, 2] + 1, planted[:, 1], planted[:, 0] ** 2], dim=1)
    matched, correlations = match_features(acts, planted)
    assert matched.tolist() == [4, 3, 2]
    expected = torch.corrcoef(torch.cat([planted, acts[:, [0, 2, 3, 4]]], dim=1).T)[:3, 3:]
    torch.testing.assert_close(correlations[:, [0, 2, 3, 4]], expected)
    assert not correlations[:, 1].any()  # dead


def test_a_match_is_one_to_one_and_best_in_sum() -> None:
    """Both planted features correlate best with the first; giving it to the second loses less."""
    torch.manual_seed(0)
    base = torch.randn(400, 3, dtype=torch.float64)
    planted = base[:, :2] + 0.8 * base[:, 2:]
    acts = torch.stack([base[:, 2] + 0.3 * base[:, 1], base[:, 0]], dim=1)
    matched, correlations = match_features(acts, planted)
    assert sorted(matched.tolist()) == [0, 1]
    assert correlations[[0, 1], matched].sum() >= correlations[[1, 0], matched].sum()
    assert matched.tolist() == [1, 0]


# oracle ---------------------------------------------------------------------------------------------------------------


def test_the_oracle_is_perfect_where_features_can_be_told_apart(easy: PlantedSplits) -> None:
    assert (linear_oracle(easy) > 0.98).all()


def test_context_tells_the_oracle_of_patterns() -> None:
    features = PlantedFeatures(PATTERNS)
    splits = PlantedSplits(features, n_sequences=160)
    pointwise, context = linear_oracle(splits), linear_oracle(splits, (0, -1, -3))
    pattern = torch.tensor([kind == "pattern" for kind in features.kinds])
    cue = torch.tensor([kind == "cue" for kind in features.kinds])
    assert (context - pointwise)[pattern].mean() > 0.1
    assert abs((context - pointwise)[cue].mean()) < 0.05
    wrong_lags = linear_oracle(splits, (0, -5, -7))
    assert (wrong_lags - pointwise)[pattern].mean() < 0.05
