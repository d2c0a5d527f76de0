"""Search a sparsity coefficient whose SAE has the wanted L0, and choose among trainings on TUNE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mtsae_lens.records import MaybeNaN, Record

_LEAST_L0 = 1e-2
"""An SAE that hardly fires counts as this sparse, so that its logarithm is finite."""
_LARGEST_FACTOR = 16.0
"""The most by which one step of the search changes the coefficient."""
_SLOPES = (0.25, 4.0)
"""Steepest and flattest change of log L0 with the log coefficient that a step believes. Before two trials are known it is 1."""


@dataclass(frozen=True, kw_only=True)
class Trained(Record):
    """What is known of one training: its setting, and what it reaches on TUNE."""

    lr: float
    coefficient: float | None
    """The sparsity coefficient; None for an architecture whose L0 is a setting."""
    l0: MaybeNaN
    explained_variance: MaybeNaN
    """Without massive tokens."""
    seconds: float | None
    """Wall time of the training; None if it was interrupted and resumed."""
    failed: str = ""
    """How training diverged: which loss or weights are not finite. Empty if they all are finite."""

    def distance(self, target: float) -> float:
        """Return `|log(L0 / target)|`.

        Args:
            target: the wanted L0.
        """
        return math.inf if math.isnan(self.l0) else abs(_log(self.l0) - math.log(target))


def _log(l0: float) -> float:
    return math.log(max(l0, _LEAST_L0))


def next_coefficient(tried: Sequence[Trained], target: float, tolerance: float, start: float) -> float | None:
    """Return the sparsity coefficient to try next, to three digits; None if one that was tried is near enough.

    L0 is taken to fall with the coefficient. Between two trials on both sides of the wanted L0, the logarithm of L0 is interpolated in the
    logarithm of the coefficient. Otherwise it is extrapolated from the two nearest trials.

    Args:
        tried: the trials so far.
        target: the wanted L0.
        tolerance: relative distance from it that is near enough.
        start: the first coefficient.
    """
    if not tried:
        return _rounded(start)
    known = {t.coefficient: t for t in tried if t.coefficient is not None and not math.isnan(t.l0)}
    if len(known) < len(tried) or min(t.distance(target) for t in tried) <= math.log1p(tolerance):
        return None
    points = [(math.log(coefficient), _log(t.l0) - math.log(target)) for coefficient, t in known.items()]
    above, below = ([p for p in points if (p[1] > 0) is wanted] for wanted in (True, False))
    if above and below:
        (x0, y0), (x1, y1) = max(above), min(below)
        if x0 < x1:
            share = y0 / (y0 - y1)
            x = x0 + min(max(share, 0.2), 0.8) * (x1 - x0)  # a far trial says little about the places next to it
            found = _rounded(math.exp(x))
            return None if found in known else found
    (x0, y0), *others = sorted(points, key=lambda p: abs(p[1]))
    slope = 1.0
    if others:
        x1, y1 = others[0]
        slope = min(max(-(y1 - y0) / (x1 - x0), _SLOPES[0]), _SLOPES[1])
    limit = math.log(_LARGEST_FACTOR)
    found = _rounded(math.exp(x0 + min(max(y0 / slope, -limit), limit)))
    return None if found in known else found


def _rounded(coefficient: float) -> float:
    return float(f"{coefficient:.3g}")


def closest(tried: Sequence[Trained], target: float) -> Trained:
    """Return the trial whose L0 is nearest to the wanted one.

    Args:
        tried: the trials.
        target: the wanted L0.
    """
    return min(tried, key=lambda t: t.distance(target))


def rank_lrs(by_lr: Sequence[Sequence[Trained]], target: float, tolerance: float) -> list[Trained]:
    """Return the closest trial of each learning rate, the one with the highest explained variance on TUNE first.

    Trials whose L0 is not within the tolerance are left out, unless none is: then the closest one of all is returned alone.

    Args:
        by_lr: the trials of each learning rate.
        target: the wanted L0.
        tolerance: relative distance from the wanted L0. An architecture whose L0 is a setting always has it.
    """
    finalists = [closest(tried, target) for tried in by_lr]
    near = [t for t in finalists if (t.coefficient is None or t.distance(target) <= math.log1p(tolerance)) and not t.failed]
    if not near:
        return [closest(finalists, target)]
    return sorted(near, key=lambda t: math.inf if math.isnan(t.explained_variance) else -t.explained_variance)
