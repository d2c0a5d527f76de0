"""Compute spreads over seeds, and format them for tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mtsae_lens.records import Record


@dataclass(frozen=True)
class Spread(Record):
    """Mean, standard deviation and range over seeds."""

    mean: float
    std: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if self.low == self.high:
            return show_number(self.mean)
        return f"{show_number(self.mean)} ± {show_number(self.std)} ({show_number(self.low)} to {show_number(self.high)})"


def show_number(value: float) -> str:
    """Format a number with three significant digits, without an exponent if possible.

    Args:
        value: the number.
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1000 else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2g}"


def compute_spread(values: Sequence[float | None]) -> Spread | None:
    """Compute the spread of the values that are not None.

    Args:
        values: one value per seed.

    Returns:
        The spread; None if all values are None.
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean = math.fsum(known) / len(known)
    variance = math.fsum((value - mean) ** 2 for value in known) / (len(known) - 1) if len(known) > 1 else 0.0
    return Spread(mean, math.sqrt(variance), min(known), max(known), len(known))


def show_spread(values: Sequence[float | None]) -> str:
    """Format the spread of values over seeds.

    Args:
        values: one value per seed.
    """
    found = compute_spread(values)
    return str(found) if found else "not defined"


def show_difference(values: Sequence[float | None], base: Sequence[float | None]) -> str:
    """Format the difference from a base, paired by seed: its mean, its range, and whether the seeds agree on its sign.

    Args:
        values: one value per seed.
        base: the base's values, in the same order.
    """
    pairs = [(a, b) for a, b in zip(values, base, strict=True) if a is not None and b is not None]
    delta = compute_spread([a - b for a, b in pairs])
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
