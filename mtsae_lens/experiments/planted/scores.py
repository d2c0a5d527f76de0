"""Summarize the planted trials of several seeds: by class of feature, in pairs, and whether time scales are identified correctly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy import stats

from mtsae_lens.evaluation.time_scales import nearest_class
from mtsae_lens.experiments.planted.results import (
    ByClass,
    FeatureInterval,
    Naming,
    PlantedRecord,
    PlantedTrial,
    Score,
    TemporalTrial,
)

N_RESAMPLES = 2_000


def estimate(by_seed: Sequence[Sequence[float]]) -> FeatureInterval:
    """Estimate a mean by a percentile bootstrap over features, which are planted independently of each other.

    Args:
        by_seed: the values of each seed.
    """
    values = np.concatenate([np.asarray(seed, dtype=float) for seed in by_seed])
    means = [float(np.mean(seed)) for seed in by_seed]
    mean = float(values.mean())
    low = high = mean
    if len(values) > 1 and values.std() > 0:
        result = stats.bootstrap(
            (values,), np.mean, n_resamples=N_RESAMPLES, method="percentile", rng=np.random.default_rng(0), vectorized=True
        )
        low, high = float(result.confidence_interval.low), float(result.confidence_interval.high)
    return FeatureInterval(mean, low, high, min(means), max(means), len(values))


def list_classes(record: PlantedRecord) -> list[tuple[str, int]]:
    """Return the classes of features (kind and time scale) in the order of the record, each once.

    Args:
        record: the record.
    """
    return list(dict.fromkeys(zip(record.kind, record.time_scale, strict=True)))


def select_class(
    record: PlantedRecord, values: Sequence[float | None], kind: str, time_scale: int | None = None
) -> list[float]:
    """Return the values of the features of one class; missing values count as 0.

    Args:
        record: the record.
        values: one value per planted feature.
        kind: kind of the features.
        time_scale: time scale of the features; None for all.
    """
    rows = zip(record.kind, record.time_scale, values, strict=True)
    return [value or 0.0 for k, t, value in rows if k == kind and time_scale in (None, t)]


def estimate_class(records: Sequence[PlantedRecord], score: Score, kind: str, time_scale: int | None = None) -> FeatureInterval:
    """Estimate a score over the features of one class of all seeds.

    Args:
        records: one record per seed.
        score: name of the score.
        kind: kind of the features.
        time_scale: time scale of the features; None for all.
    """
    return estimate([select_class(record, record.column(score), kind, time_scale) for record in records])


def label_class(kind: str, time_scale: int) -> str:
    """Return the name of a class, such as `persistent 16`, `cue` or `pattern -8`.

    Args:
        kind: kind of the features.
        time_scale: time scale of the features, in positions.
    """
    return {"persistent": f"persistent {time_scale}", "cue": "cue", "pattern": f"pattern -{time_scale}"}[kind]


def estimate_by_class(records: Sequence[PlantedRecord], score: Score) -> ByClass:
    """Estimate a score for every class of feature, by the label of the class.

    Args:
        records: one record per seed.
        score: name of the score.
    """
    return {label_class(*of): estimate_class(records, score, *of) for of in list_classes(records[0])}


def estimate_margin(
    ours: Sequence[PlantedRecord],
    theirs: Sequence[PlantedRecord],
    kind: str,
    *,
    score: Score = "f1",
    their_score: Score | None = None,
) -> FeatureInterval:
    """Estimate the mean difference over the same planted features, paired by seed and feature.

    Args:
        ours: one record per seed.
        theirs: the records to subtract.
        kind: kind of the features.
        score: name of the score.
        their_score: name of the score in `theirs`; None for the same.
    """
    pairs = [
        (select_class(a, a.column(score), kind), select_class(b, b.column(their_score or score), kind))
        for a, b in zip(ours, theirs, strict=True)
    ]
    return estimate([[x - y for x, y in zip(a, b, strict=True)] for a, b in pairs])


def _naming(true_by_seed: Sequence[Sequence[int]], named_by_seed: Sequence[Sequence[int]]) -> Naming:
    scales = sorted(set(true_by_seed[0]))
    distances = [abs(np.log2(a / b)) for a in scales for b in scales]
    pairs = [list(zip(true, named, strict=True)) for true, named in zip(true_by_seed, named_by_seed, strict=True)]
    return Naming(
        accuracy=estimate([[float(a == b) for a, b in seed] for seed in pairs]),
        octaves=estimate([[float(abs(np.log2(a / b))) for a, b in seed] for seed in pairs]),
        chance_accuracy=1 / len(scales),
        chance_octaves=float(np.mean(distances)),
    )


def name_by_statistic(records: Sequence[PlantedTrial], statistic: Score, kind: str) -> Naming:
    """Identify each feature's time scale by a statistic of its match, calibrated on the other seeds' dictionaries (nearest class mean).

    Args:
        records: one record per seed, at least two.
        statistic: `run_length`, `context_share` or `context_lag`.
        kind: kind of the features.
    """

    def values(chosen: Sequence[PlantedTrial]) -> torch.Tensor:
        return torch.tensor([value for record in chosen for value in select_class(record, record.column(statistic), kind)])

    def time_scales(chosen: Sequence[PlantedTrial]) -> torch.Tensor:
        return torch.tensor([int(value) for record in chosen for value in select_class(record, record.time_scale, kind)])

    true, named = [], []
    for place, record in enumerate(records):
        others = [other for number, other in enumerate(records) if number != place]
        true.append(time_scales([record]).tolist())
        named.append(nearest_class(values([record]), values(others), time_scales(others)).tolist())
    return _naming(true, named)


def name_by_lags(records: Sequence[TemporalTrial], lags: Sequence[tuple[int, int]]) -> Naming:
    """Identify each pattern's lags as the planted pair that holds most of its profile, without calibration.

    Args:
        records: one record per seed.
        lags: the planted pairs of lags.
    """
    far = [pair[1] for pair in lags]
    true = [[int(value) for value in select_class(record, record.time_scale, "pattern")] for record in records]
    named = [[far[int(place)] for place in select_class(record, record.named_lags, "pattern")] for record in records]
    return _naming(true, named)


def mean_profile(records: Sequence[TemporalTrial], kind: str, time_scale: int) -> list[float]:
    """Average the share of each offset over the features of one class of all seeds.

    Args:
        records: one record per seed.
        kind: kind of the features.
        time_scale: time scale of the features.
    """
    rows = [
        row
        for record in records
        for row, k, t in zip(record.profile, record.kind, record.time_scale, strict=True)
        if (k, t) == (kind, time_scale)
    ]
    return [float(np.mean([row[place] or 0.0 for row in rows])) for place in range(len(rows[0]))]


def best_setting(results: Mapping[str, PlantedTrial], names: Sequence[str]) -> str:
    """Return the name of the trial with the highest mean F1 over all planted features.

    Args:
        results: trials by name.
        names: names of the trials to choose from.
    """
    return max(names, key=lambda name: float(np.mean([value or 0.0 for value in results[name].f1])))
