"""Fit a gate that recognizes known groups, such as the people to forget, on questions about them and about other people on SELECT.

The model of the activations where an answer begins has two variances (Brümmer and de Villiers 2010, "The speaker partitioning problem"):

    h = mu + y + e,    y ~ N(0, B) for each group,    e ~ N(0, W) for each question

A change of coordinates makes W the identity and B diagonal (`psi`). Of a known group with n questions of mean zbar, the posterior of y is
normal with variance `c = psi / (1 + n psi)` and mean `n c zbar`. Its activations then vary by `1 + c`, and those of a new group by `1 + psi`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mtsae_lens.errors import DataError
from mtsae_lens.splice.group_gate import KnownGroupsGate

MAX_DIRECTIONS = 64
SMALLEST_STD = 1e-6
_SMALLEST_VARIANCE = 1e-6  # of standardized coordinates, so that constant activations can be inverted
MIN_GROUPS = 3  # fewer say nothing of how groups differ


def fit_known_groups(
    forget: Float[Tensor, "n d"],
    forget_groups: Sequence[str],
    retain: Float[Tensor, "m d"],
    retain_groups: Sequence[str],
    max_directions: int = MAX_DIRECTIONS,
) -> KnownGroupsGate:
    """Estimate how groups differ from all groups, and where the groups to forget lie.

    Args:
        forget: activations where the answers to questions about known groups begin.
        forget_groups: the group of each row, such as the name of a person.
        retain: the same for groups to keep; the gate stays closed on them because they are not known.
        retain_groups: the group of each row.
        max_directions: number of directions to use, those in which groups differ most.

    Returns:
        The gate, with threshold 0: a known group and a new one are equally likely.

    Raises:
        DataError: there are too few groups, a group is both to forget and to keep, an activation is not finite, or there
            is no direction in which they differ by more than their own questions do.
    """
    names = sorted({*forget_groups, *retain_groups})
    if len(names) < MIN_GROUPS:
        raise DataError(f"expected at least {MIN_GROUPS} groups (people), got {len(names)}; ask about more")
    if shared := sorted(set(forget_groups) & set(retain_groups)):
        raise DataError(
            f"expected each group either to forget or to keep, got {shared[0]} as both; ask about other people to keep"
        )
    place = {name: index for index, name in enumerate(names)}
    group = torch.tensor([place[name] for name in (*forget_groups, *retain_groups)])
    rows = torch.cat([forget, retain]).cpu().double()  # not every device has float64
    if not bool(rows.isfinite().all()):
        raise DataError(
            "expected finite activations where answers begin, got NaN or infinity; load the model with --dtype float32"
        )
    if len(rows) <= len(names):
        raise DataError(f"expected several questions about each group, got {len(rows)} about {len(names)}; read more questions")
    known = sorted({place[name] for name in forget_groups})
    return _make_gate(_estimate_groups(rows, group), known, max_directions)


@dataclass(frozen=True, eq=False)
class _Groups:
    """Estimates of how activations vary between groups, and within each. Covariances are those of coordinates divided by `scale`."""

    n_each: Float[Tensor, " group"]
    means: Float[Tensor, "group d"]
    center: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]
    within: Float[Tensor, "d d"]
    between: Float[Tensor, "d d"]


def _estimate_groups(rows: Float[Tensor, "n d"], group: Int[Tensor, " n"]) -> _Groups:
    """Estimate the means of groups, and the covariances within and between them.

    Args:
        rows: activations, more than there are groups.
        group: the number of each row's group, from 0; each group has a row.
    """
    n_each = torch.bincount(group).double()
    n_groups = len(n_each)
    means = torch.zeros(n_groups, rows.shape[1]).to(rows).index_add_(0, group, rows) / n_each.unsqueeze(1)
    center = means.mean(dim=0)
    deviations = rows - means[group]
    scale = deviations.std(dim=0).clamp(min=SMALLEST_STD)  # because some coordinates are far larger than others
    within = _shrunk_covariance(deviations / scale, len(rows) - n_groups)
    between = torch.cov(((means - center) / scale).T)
    return _Groups(n_each, means, center, scale, within, between)


def _make_gate(groups: _Groups, known: Sequence[int], max_directions: int) -> KnownGroupsGate:
    """Find the directions in which groups differ, and the posterior of each known group in them.

    Args:
        groups: the estimates.
        known: numbers of the known groups.
        max_directions: number of directions to use.

    Raises:
        DataError: there is no direction in which groups differ by more than their own questions do.
    """
    whiten = torch.linalg.inv(torch.linalg.cholesky(groups.within))
    spread, directions = torch.linalg.eigh(whiten @ groups.between @ whiten.T)
    psi = spread.flip(0) - (1 / groups.n_each).mean()  # means of n questions differ by W / n even if the groups do not
    n_used = min(max_directions, int((psi > 0).sum()), len(groups.means) - 1)
    if not n_used:
        raise DataError(
            "expected groups (people) whose activations differ by more than their own questions do, got none; give another hook or gate"
        )
    psi, projection = psi[:n_used], directions.flip(1).T[:n_used] @ whiten / groups.scale
    n_questions = groups.n_each[known].unsqueeze(1)
    posterior = psi / (1 + n_questions * psi)
    means = n_questions * posterior * ((groups.means[known] - groups.center) @ projection.T)
    p, mu, m, v, prior = (part.float().cpu() for part in (projection, groups.center, means, 1 + posterior, 1 + psi))
    return KnownGroupsGate(p, mu, m, v, prior, threshold=0.0)


def _shrunk_covariance(deviations: Float[Tensor, "n d"], n_free: int) -> Float[Tensor, "d d"]:
    """Return a covariance that is shrunk toward a multiple of the identity, by the oracle approximating shrinkage of Chen et al. 2010.

    Args:
        deviations: rows with a mean of zero.
        n_free: degrees of freedom of the rows.
    """
    d = deviations.shape[1]
    raw = deviations.T @ deviations / n_free
    trace, of_square = raw.trace(), raw.square().sum()
    top = (1 - 2 / d) * of_square + trace.square()
    bottom = (n_free + 1 - 2 / d) * (of_square - trace.square() / d)
    share = (top / bottom).clamp(max=1.0) if bottom > 0 else torch.ones_like(trace)
    return (1 - share) * raw + (share * trace / d + _SMALLEST_VARIANCE) * torch.eye(d).to(raw)
