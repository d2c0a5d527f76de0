"""The edits that a sweep tries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from mtsae_lens.data.contexts import TokenTable
from mtsae_lens.errors import ConfigError
from mtsae_lens.splice.edits import DirectionEdit, FeatureEdit
from mtsae_lens.splice.gates import AlwaysOpen, Gate
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.gating import fit_gate, thresholds_at
from mtsae_lens.unlearning.selection.evidence import SelectionEvidence, feature_scores
from mtsae_lens.unlearning.selection.ranking import ranking
from mtsae_lens.unlearning.selection.scale_scores import FromScales
from mtsae_lens.unlearning.selection.scores import make_score
from mtsae_lens.unlearning.sweep import Candidate
from mtsae_lens.unlearning.task import SPARED, Task

Gates = Mapping[float | None, Gate]
"""By false-positive rate; None: always open."""


@dataclass(frozen=True)
class Grid:
    """What is swept on TUNE."""

    scores: tuple[str, ...] = ("frequency_difference", "frequency_ratio")
    """Ways of choosing features, by name in `SCORES`."""
    n_features: tuple[int, ...] = (8, 32, 128)
    multipliers: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """Features go to `-multiplier` times their activation."""
    false_positive_rates: tuple[float | None, ...] = (0.01, 0.05)
    """Share of retain positions at which the gate may open by mistake; None: no gate."""
    scales: tuple[int, ...] = ()
    """Of an MTSAE, edit only features that these dilations drive; none: any feature."""
    min_scale_share: float = 0.5
    """How much of what lifts a feature they must give."""

    def __post_init__(self) -> None:
        for name in ("scores", "n_features", "multipliers", "false_positive_rates", "scales"):
            given = getattr(self, name)
            if isinstance(given, str) or not isinstance(given, Sequence):
                raise ConfigError(f"{name} of a grid are given in a tuple, such as {name}=({given!r},); got {given!r}")
        for rate in self.false_positive_rates:
            if rate is not None and not 0 < rate < 1:
                raise ConfigError(
                    f"false_positive_rates are shares between 0 and 1, such as 0.01, or None for no gate; got {rate}"
                )


def fit_gates(lm: HookedLM, task: Task, rates: Sequence[float | None]) -> dict[float | None, Gate]:
    """One gate fitted on SELECT, its thresholds set on TUNE."""
    gated = [rate for rate in rates if rate is not None]
    gates: dict[float | None, Gate] = {None: AlwaysOpen()} if None in rates else {}
    if gated:
        retain = list(task.tables("select", lm.cutter, SPARED).values())
        gate = fit_gate(lm, task.table(task.forget, "select", lm.cutter), retain, seed=task.seed)
        held_out = list(task.tables("tune", lm.cutter, SPARED).values())
        gates |= dict(zip(gated, thresholds_at(lm, gate, held_out, gated), strict=True))
    return gates


def gather_evidence(lm: HookedLM, task: Task) -> SelectionEvidence:
    """What features are chosen from: SELECT text of every corpus but the neutral ones."""
    tables = task.tables("select", lm.cutter, ("forget", *SPARED))
    near, far = (tuple(tables[source] for source in task.sources(role)) for role in SPARED)
    return SelectionEvidence(lm, tables[task.forget], near, far)


def rankings(evidence: SelectionEvidence, grid: Grid, *, min_ratio: float) -> dict[str, tuple[int, ...]]:
    """The features of every score that has any, best first."""
    found = {}
    for name in grid.scores:
        score = make_score(name, **({"min_ratio": min_ratio} if name == "frequency_ratio" else {}))
        if grid.scales:
            score = FromScales(score, grid.scales, grid.min_scale_share)
        found[name] = ranking(feature_scores(score, evidence))
    return {name: ranked for name, ranked in found.items() if ranked}


def feature_candidates(rankings: Mapping[str, Sequence[int]], grid: Grid, gates: Gates) -> list[Candidate]:
    """The first n features of every ranking, at every multiplier, behind every gate."""
    candidates = []
    for score, ranked in rankings.items():
        sizes = sorted({min(n, len(ranked)) for n in grid.n_features} - {0})
        for n, multiplier, (rate, gate) in product(sizes, grid.multipliers, gates.items()):
            setting = {"score": score, "n_features": n, "multiplier": multiplier, "false_positive_rate": rate}
            candidates.append(Candidate(setting, FeatureEdit(tuple(ranked[:n]), multiplier, gate)))
    return candidates


def direction_candidates(direction: Tensor, center: Tensor, multipliers: Sequence[float], gates: Gates) -> list[Candidate]:
    """A dense direction at every multiplier, behind every gate."""
    basis = (direction / direction.norm()).unsqueeze(0)
    return [
        Candidate(
            {"score": "difference_of_means", "n_features": 1, "multiplier": multiplier, "false_positive_rate": rate},
            DirectionEdit(basis, center, multiplier, gate),
        )
        for multiplier, (rate, gate) in product(multipliers, gates.items())
    ]


def difference_of_means(lm: HookedLM, forget: TokenTable, retain: Sequence[TokenTable]) -> tuple[Tensor, Tensor]:
    """`mean(h | forget) - mean(h | retain)` over unmasked positions, and the mean over retain text; retain corpora weigh the same."""
    center = torch.stack([_mean_input(lm, table) for table in retain]).mean(dim=0)
    return _mean_input(lm, forget) - center, center


def _mean_input(lm: HookedLM, table: TokenTable) -> Tensor:
    total, n_positions = torch.zeros(()), 0
    for tokens in lm.batches(table):
        rows = lm.sae_input(tokens).flatten(2)[~lm.masked(tokens)]
        total = total.to(rows.device) + rows.sum(dim=0)
        n_positions += len(rows)
    return total / max(n_positions, 1)
