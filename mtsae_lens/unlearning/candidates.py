"""The edits that a sweep tries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

from torch import Tensor

from mtsae_lens.errors import ConfigError
from mtsae_lens.splice.edits import DirectionEdit, Edit
from mtsae_lens.splice.gates import AlwaysOpen, Gate
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.edit_kinds import EDIT_KINDS, check_edit_kind
from mtsae_lens.unlearning.gating import fit_gate, thresholds_at
from mtsae_lens.unlearning.selection.evidence import SelectionEvidence, feature_scores
from mtsae_lens.unlearning.selection.ranking import ranking
from mtsae_lens.unlearning.selection.scale_scores import FromScales
from mtsae_lens.unlearning.selection.scores import make_score
from mtsae_lens.unlearning.sweep import Candidate, Setting
from mtsae_lens.unlearning.task import SPARED, Task

Gates = Mapping[float | None, Gate]
"""By false-positive rate; None: always open."""


@dataclass(frozen=True)
class Grid:
    """The settings that are tried on TUNE: every combination of these."""

    scores: tuple[str, ...] = ("frequency_difference", "frequency_ratio")
    """Ways of choosing features, by name in `SCORES`."""
    n_features: tuple[int, ...] = (8, 32, 128)
    multipliers: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """How strong the edit is: 0 is the weakest that removes a feature; see `EDIT_KINDS`."""
    false_positive_rates: tuple[float | None, ...] = (0.01, 0.05)
    """Shares of retain positions at which the gate may open by mistake; None for no gate."""
    scales: tuple[int, ...] = ()
    """Dilations of an MTSAE: only features that these drive are edited; empty for any feature."""
    min_scale_share: float = 0.5
    """The share of a feature's lift that these dilations must give."""
    edits: tuple[str, ...] = ("scale",)
    """What is done to the features, by name in `EDIT_KINDS`."""

    def __post_init__(self) -> None:
        for name in ("scores", "n_features", "multipliers", "false_positive_rates", "scales", "edits"):
            given = getattr(self, name)
            if isinstance(given, str) or not isinstance(given, Sequence):
                raise ConfigError(f"{name} of a grid are given in a tuple, such as {name}=({given!r},); got {given!r}")
        for kind in self.edits:
            check_edit_kind(kind)
        for rate in self.false_positive_rates:
            if rate is not None and not 0 < rate < 1:
                raise ConfigError(
                    f"false_positive_rates are shares between 0 and 1, such as 0.01, or None for no gate; got {rate}"
                )


def fit_gates(lm: HookedLM, task: Task, rates: Sequence[float | None]) -> dict[float | None, Gate]:
    """Fit one gate on SELECT and set its thresholds on TUNE, one for each false-positive rate; None stands for no gate."""
    gated = [rate for rate in rates if rate is not None]
    gates: dict[float | None, Gate] = {None: AlwaysOpen()} if None in rates else {}
    if gated:
        retain = list(task.tables("select", lm.cutter, SPARED).values())
        gate = fit_gate(lm, task.table(task.forget, "select", lm.cutter), retain, seed=task.seed)
        held_out = list(task.tables("tune", lm.cutter, SPARED).values())
        gates |= dict(zip(gated, thresholds_at(lm, gate, held_out, gated), strict=True))
    return gates


def gather_evidence(lm: HookedLM, task: Task) -> SelectionEvidence:
    """Read what features are chosen from: SELECT text of every corpus that is not neutral."""
    tables = task.tables("select", lm.cutter, ("forget", *SPARED))
    near, far = (tuple(tables[source] for source in task.sources(role)) for role in SPARED)
    return SelectionEvidence(lm, tables[task.forget], near, far)


def rankings(evidence: SelectionEvidence, grid: Grid, *, min_ratio: float) -> dict[str, tuple[int, ...]]:
    """Rank the features by every score of the grid, best first; scores that find no feature are left out."""
    found = {}
    for name in grid.scores:
        score = make_score(name, **({"min_ratio": min_ratio} if name == "frequency_ratio" else {}))
        if grid.scales:
            score = FromScales(score, grid.scales, grid.min_scale_share)
        found[name] = ranking(feature_scores(score, evidence))
    return {name: ranked for name, ranked in found.items() if ranked}


@dataclass(frozen=True, eq=False)
class FeatureCandidate(Candidate):
    """An edit of chosen features."""

    features: tuple[int, ...]
    of: Callable[[Sequence[int]], Edit]
    """Makes the same edit of other features."""
    kind: str = "scale"
    """Name of the kind of edit in `EDIT_KINDS`."""
    multiplier: float | None = None
    """Strength of the edit; None for a kind without one."""


def feature_candidates(
    rankings: Mapping[str, Sequence[int]], grid: Grid, gates: Gates, evidence: SelectionEvidence
) -> list[FeatureCandidate]:
    """Make the candidates: the first n features of every ranking, edited in every way, at every multiplier, behind every gate."""
    candidates = []
    for kind, (score, ranked) in product(grid.edits, rankings.items()):
        make, has_strength = EDIT_KINDS[kind].prepare(evidence), EDIT_KINDS[kind].has_strength
        strengths = grid.multipliers if has_strength else (0.0,)
        sizes = sorted({min(n, len(ranked)) for n in grid.n_features} - {0})
        for n, multiplier, (rate, gate) in product(sizes, strengths, gates.items()):
            strength = multiplier if has_strength else None
            setting: Setting = {
                "score": score,
                "n_features": n,
                "edit": kind,
                "multiplier": strength,
                "false_positive_rate": rate,
            }
            of = partial(make, multiplier=multiplier, gate=gate)
            candidates.append(FeatureCandidate(setting, of(ranked[:n]), tuple(ranked[:n]), of, kind, strength))
    return candidates


def direction_candidates(direction: Tensor, center: Tensor, multipliers: Sequence[float], gates: Gates) -> list[Candidate]:
    """Make the candidates that edit a dense direction: at every multiplier, behind every gate."""
    basis = (direction / direction.norm()).unsqueeze(0)
    return [
        Candidate(
            {"score": "difference_of_means", "n_features": 1, "multiplier": multiplier, "false_positive_rate": rate},
            DirectionEdit(basis, center, multiplier, gate),
        )
        for multiplier, (rate, gate) in product(multipliers, gates.items())
    ]
