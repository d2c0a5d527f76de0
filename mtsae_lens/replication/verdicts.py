"""Sentences computed from numbers: what a switch changed, seed by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation and range over seeds."""

    mean: float
    std: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{show(self.mean)} +- {show(self.std)} ({show(self.low)} to {show(self.high)})"


def show(value: float) -> str:
    """A number as sentences show it: three significant digits, no exponent where it can be helped."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1000 else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2g}"


def spread(values: Sequence[float | None]) -> Spread | None:
    """Over the values that are numbers; None if there are none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean = math.fsum(known) / len(known)
    variance = math.fsum((value - mean) ** 2 for value in known) / (len(known) - 1) if len(known) > 1 else 0.0
    return Spread(mean, math.sqrt(variance), min(known), max(known), len(known))


def compare(metric: str, label: str, values: Sequence[float | None], base_label: str, base: Sequence[float | None]) -> str:
    """`label` against `base_label`, paired by seed: the mean difference, its range, and in how many seeds it has one sign."""
    pairs = [(a, b) for a, b in zip(values, base, strict=True) if a is not None and b is not None]
    if not pairs:
        return f"{label}: {metric} is not defined."
    difference = spread([a - b for a, b in pairs])
    own, other = spread([a for a, _ in pairs]), spread([b for _, b in pairs])
    assert difference is not None
    assert own is not None
    assert other is not None
    higher, lower = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
    if higher == len(pairs) or lower == len(pairs):
        direction = f"{'higher' if higher else 'lower'} in {len(pairs)} of {len(pairs)} seeds"
    elif not higher and not lower:
        direction = "the same in every seed"
    else:
        direction = f"no clear difference: higher in {higher}, lower in {lower} of {len(pairs)} seeds"
    return (
        f"{label} against {base_label}: {metric} {show(own.mean)} against {show(other.mean)}, {direction} "
        f"(difference {show(difference.mean)}, from {show(difference.low)} to {show(difference.high)})."
    )
