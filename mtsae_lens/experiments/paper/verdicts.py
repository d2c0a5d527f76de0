"""Sentences computed from numbers: what a switch changed, seed by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
        if self.low == self.high:
            return show(self.mean)
        return f"{show(self.mean)} ± {show(self.std)} ({show(self.low)} to {show(self.high)})"


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


def shown(values: Sequence[float | None]) -> str:
    """Their spread, or that there is none."""
    found = spread(values)
    return str(found) if found else "not defined"


def difference(values: Sequence[float | None], base: Sequence[float | None]) -> str:
    """Against a base, paired by seed: mean difference, range, and whether the seeds agree on its sign."""
    pairs = [(a, b) for a, b in zip(values, base, strict=True) if a is not None and b is not None]
    delta = spread([a - b for a, b in pairs])
    if delta is None:
        return "not defined"
    n, higher, lower = len(pairs), sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
    if not higher and not lower:
        return f"the same in {n} of {n} seeds"
    if n in (higher, lower):
        agreement = f"{'higher' if higher else 'lower'} in {n} of {n} seeds"
    else:
        agreement = f"no clear sign: higher in {higher}, lower in {lower} of {n} seeds"
    return f"{delta.mean:+.3g} ({delta.low:+.3g} to {delta.high:+.3g}; {agreement})"


def verdict(metric: str, base_label: str, base: Sequence[float | None], others: Mapping[str, Sequence[float | None]]) -> str:
    """One sentence: the base's value, and how every other arm differs from it."""
    differences = "; ".join(f"{label} {difference(values, base)}" for label, values in others.items())
    return f"{metric[0].upper()}{metric[1:]}, {base_label}: {shown(base)}. Against it: {differences}."
