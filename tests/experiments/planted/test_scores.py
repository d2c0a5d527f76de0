"""Test the summary of planted records: pairs, intervals, and time scales identified with other dictionaries."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from filled import filled

from mtsae_lens.data.planted import PlantedConfig
from mtsae_lens.experiments.planted.measures import measure_arm
from mtsae_lens.experiments.planted.results import TemporalTrial
from mtsae_lens.experiments.planted.scores import best_setting, estimate, estimate_margin, name_by_lags, name_by_statistic
from mtsae_lens.experiments.planted.training import PlantedArm, PlantedSettings, train_arm


def record(**columns: list[Any]) -> TemporalTrial:
    n = len(next(iter(columns.values())))
    return filled(TemporalTrial, {"kind": ["pattern"] * n, "time_scale": [2, 16] * (n // 2), **columns})


def test_a_margin_is_paired_by_feature() -> None:
    ours, theirs = record(f1=[0.9, 0.5, 0.8, 0.4]), record(f1=[0.7, 0.3, 0.6, 0.2])
    found = estimate_margin([ours], [theirs], "pattern")
    assert (found.mean, found.low, found.high, found.n) == pytest.approx((0.2, 0.2, 0.2, 4))


def test_an_interval_holds_the_mean_and_the_seeds_their_range() -> None:
    found = estimate([[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    assert found.mean == pytest.approx(5 / 6)
    assert found.low < found.mean < found.high <= 1
    assert (found.seed_low, found.seed_high) == pytest.approx((2 / 3, 1))


def test_time_scales_are_named_by_the_other_dictionaries() -> None:
    agreeing = [record(run_length=[1.0, 8.0]), record(run_length=[1.1, 9.0]), record(run_length=[0.9, 7.0])]
    assert name_by_statistic(agreeing, "run_length", "pattern").accuracy.mean == 1
    opposed = [record(run_length=[1.0, 8.0]), record(run_length=[8.0, 1.0])]  # each names itself rightly and the other wrongly
    found = name_by_statistic(opposed, "run_length", "pattern")
    assert (found.accuracy.mean, found.octaves.mean) == (0, 3)
    assert (found.chance_accuracy, found.chance_octaves) == (0.5, 1.5)


def test_lags_are_named_by_the_pair_with_the_largest_share() -> None:
    found = name_by_lags([record(named_lags=[0, 0])], [(1, 2), (8, 16)])
    assert found.accuracy.mean == 0.5


def test_the_best_setting_has_the_highest_mean() -> None:
    results = {"a/0": record(f1=[0.1, 0.9]), "a/1": record(f1=[0.6, 0.6]), "b/0": record(f1=[1.0, 1.0])}
    assert best_setting(results, ["a/0", "a/1"]) == "a/1"


def test_a_seed_is_a_dictionary_and_data_may_differ_by_arm() -> None:
    planted = PlantedConfig(d_in=16, context_size=24, n_features_per_duration=2, n_patterns_per_lags=1, n_cues=6)
    settings = PlantedSettings(planted, d_sae=24, n_steps=2, n_test_sequences=8)
    plain = PlantedArm("topk", {"k": 4})
    first, again, other = (measure_arm(plain, settings, seed) for seed in (0, 0, 1))
    assert first == again
    rich = measure_arm(PlantedArm("topk", {"k": 4}, {"n_cues": 7}), settings, 0)
    assert len(rich.kind) == len(first.kind) + 1
    # the untrained SAE of another seed on the dictionary of this one would have other cosines than these
    assert first.cosine != other.cosine


def test_the_dictionary_follows_the_seed() -> None:
    settings = PlantedSettings(
        PlantedConfig(d_in=8, n_features_per_duration=1, n_cues=4, n_patterns_per_lags=1, pattern_rate=0.02)
    )
    seeds = [train_arm(PlantedArm("topk", {"k": 4}), replace(settings, n_steps=1), seed)[1].cfg.seed for seed in (3, 4)]
    assert seeds == [3, 4]
