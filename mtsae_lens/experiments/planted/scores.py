"""What the planted trials say together: by class of feature, in pairs, and whether time scales are named rightly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats

from mtsae_lens.evaluation.time_scales import nearest_class

N_RESAMPLES = 2_000
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Estimate:
    """A mean over planted features of all seeds, with its 95% interval and the range of the seeds' means."""

    mean: float
    low: float
    high: float
    seed_low: float
    seed_high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def estimate(by_seed: Sequence[Sequence[float]]) -> Estimate:
    """Percentile bootstrap over features; a seed's features are as good as independent of each other, being planted so."""
    values = np.concatenate([np.asarray(seed, dtype=float) for seed in by_seed])
    means = [float(np.mean(seed)) for seed in by_seed]
    mean = float(values.mean())
    low = high = mean
    if len(values) > 1 and values.std() > 0:
        result = stats.bootstrap(
            (values,), np.mean, n_resamples=N_RESAMPLES, method="percentile", rng=np.random.default_rng(0), vectorized=True
        )
        low, high = float(result.confidence_interval.low), float(result.confidence_interval.high)
    return Estimate(mean, low, high, min(means), max(means), len(values))


def classes(record: Record) -> list[tuple[str, int]]:
    """Kind and time scale, in the order of the record, each once."""
    return list(dict.fromkeys(zip(record["kind"], record["time_scale"], strict=True)))


def of_class(record: Record, values: Sequence[float], kind: str, time_scale: int | None = None) -> list[float]:
    """The values of the features of one kind, of one time scale if given; missing ones count as 0."""
    rows = zip(record["kind"], record["time_scale"], values, strict=True)
    return [value or 0.0 for k, t, value in rows if k == kind and time_scale in (None, t)]


def class_estimate(records: Sequence[Record], score: str, kind: str, time_scale: int | None = None) -> Estimate:
    """A score over the features of one class of all seeds."""
    return estimate([of_class(record, record[score], kind, time_scale) for record in records])


def margin(
    ours: Sequence[Record], theirs: Sequence[Record], kind: str, *, score: str = "f1", their_score: str | None = None
) -> Estimate:
    """Mean difference over the same planted features, paired by seed and feature."""
    pairs = [
        (of_class(a, a[score], kind), of_class(b, b[their_score or score], kind)) for a, b in zip(ours, theirs, strict=True)
    ]
    return estimate([[x - y for x, y in zip(a, b, strict=True)] for a, b in pairs])


@dataclass(frozen=True)
class Naming:
    """How often a feature's time scale is named rightly, and by how much it is missed."""

    accuracy: Estimate
    octaves: Estimate
    """Mean |log2(named / true)|."""
    chance_accuracy: float
    chance_octaves: float
    """Of naming one of the true scales at random."""


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


def name_by_statistic(records: Sequence[Record], statistic: str, kind: str) -> Naming:
    """Name each feature's time scale by a statistic of its match, calibrated on the other seeds' dictionaries (nearest class mean).

    Args:
        records: one per seed, at least two.
        statistic: `run_length`, `context_share` or `context_lag`.
        kind: of features.
    """

    def column(chosen: Sequence[Record], name: str) -> torch.Tensor:
        return torch.tensor([value for record in chosen for value in of_class(record, record[name], kind)])

    true, named = [], []
    for place, record in enumerate(records):
        others = [other for number, other in enumerate(records) if number != place]
        calibration = column(others, statistic), column(others, "time_scale").long()
        true.append([int(value) for value in of_class(record, record["time_scale"], kind)])
        named.append(nearest_class(column([record], statistic), *calibration).tolist())
    return _naming(true, named)


def name_by_lags(records: Sequence[Record], lags: Sequence[tuple[int, int]]) -> Naming:
    """Name each pattern's lags as the planted pair that holds most of its profile; nothing is calibrated."""
    far = [pair[1] for pair in lags]
    true = [[int(value) for value in of_class(record, record["time_scale"], "pattern")] for record in records]
    named = [[far[int(place)] for place in of_class(record, record["named_lags"], "pattern")] for record in records]
    return _naming(true, named)


def mean_profile(records: Sequence[Record], kind: str, time_scale: int) -> list[float]:
    """Share of each offset, averaged over the features of one class of all seeds."""
    rows = [
        row
        for record in records
        for row, k, t in zip(record["profile"], record["kind"], record["time_scale"], strict=True)
        if (k, t) == (kind, time_scale)
    ]
    return [float(np.mean([row[place] or 0.0 for row in rows])) for place in range(len(rows[0]))]


def best_setting(results: Mapping[str, Record], names: Sequence[str]) -> str:
    """The trial with the highest mean F1 over all planted features."""
    score: Callable[[str], float] = lambda name: float(np.mean(results[name]["f1"]))  # noqa: E731
    return max(names, key=score)
