"""Make the candidate edits that a sweep tries on TUNE."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

from jaxtyping import Float
from torch import Tensor

from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.errors import ConfigError
from mtsae_lens.splice.direction_edits import DirectionEdit
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.splice.error_edits import CombinedEdit, ErrorEdit
from mtsae_lens.splice.gate_interface import Gate
from mtsae_lens.splice.gates import AlwaysOpen
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.conformal import apart, conformal_thresholds_at
from mtsae_lens.unlearning.edit_kinds import EDIT_KINDS, check_edit_kind
from mtsae_lens.unlearning.gate_kinds import GateChoice
from mtsae_lens.unlearning.gating import thresholds_at
from mtsae_lens.unlearning.left_out import left_out_thresholds_at
from mtsae_lens.unlearning.selection.error_directions import error_directions
from mtsae_lens.unlearning.selection.evidence import SelectionEvidence, feature_scores
from mtsae_lens.unlearning.selection.ranking import ranking
from mtsae_lens.unlearning.selection.scale_scores import FromScales
from mtsae_lens.unlearning.selection.scores import make_score
from mtsae_lens.unlearning.sweep import Candidate, Setting
from mtsae_lens.unlearning.task import SPARED, Task

Gates = Mapping[float | None, Gate]
"""Gates by false-positive rate; the key None stands for a gate that is always open."""


@dataclass(frozen=True)
class Grid:
    """The settings that are tried on TUNE: every combination of these.

    Raises:
        ConfigError: a field is not a tuple, a kind of edit does not exist, or a rate is not between 0 and 1.
    """

    scores: tuple[str, ...] = ("frequency_difference", "frequency_ratio")
    """Ways of choosing features, by name in `SCORES`."""
    n_features: tuple[int, ...] = (8, 32, 128)
    multipliers: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """How strong the edit is: 0 is the weakest that removes a feature, and below -1 features are amplified; see `EDIT_KINDS`."""
    false_positive_rates: tuple[float | None, ...] = (0.01, 0.05)
    """Shares of retain positions at which the gate may open by mistake; None for no gate."""
    scales: tuple[int, ...] = ()
    """Dilations of an MTSAE: only features that these drive are edited; empty for any feature."""
    min_scale_share: float = 0.5
    """The share of a feature's lift that these dilations must give."""
    edits: tuple[str, ...] = ("scale",)
    """What is done to the features, by name in `EDIT_KINDS`."""
    error_ranks: tuple[int, ...] = (0,)
    """Numbers of directions that are removed from the SAE's error too (`error_directions`); 0 keeps the error."""

    def __post_init__(self) -> None:
        for name in ("scores", "n_features", "multipliers", "false_positive_rates", "scales", "edits", "error_ranks"):
            given = getattr(self, name)
            if isinstance(given, str) or not isinstance(given, Sequence):
                raise ConfigError(f"expected a tuple for {name} of a grid, got {given!r}; give {name}=({given!r},)")
        for kind in self.edits:
            check_edit_kind(kind)
        if not self.error_ranks or min(self.error_ranks) < 0:
            raise ConfigError(f"expected error_ranks of at least 0, got {self.error_ranks}; give such as (0, 16)")
        if any(n < 1 for n in self.n_features):
            raise ConfigError(f"expected n_features of at least 1, got {self.n_features}; give such as (8, 32)")
        for rate in self.false_positive_rates:
            if rate is not None and not 0 < rate < 1:
                raise ConfigError(
                    f"expected false_positive_rates between 0 and 1, or None for no gate, got {rate}; give such as 0.01"
                )


def fit_gates(
    lm: HookedLM, task: Task, rates: Sequence[float | None], choice: GateChoice | None = None
) -> dict[float | None, Gate]:
    """Fit one gate on SELECT, and set its threshold on TUNE for each false-positive rate.

    Args:
        lm: the model with its SAE.
        task: the corpora.
        rates: false-positive rates between 0 and 1; None stands for no gate.
        choice: which gate is fitted, and how its threshold is set; None for the default. A conformal threshold is set on near text, or on
            far text if there is no near text.

    Returns:
        One gate per rate.

    Raises:
        DataError: there are too few documents for a conformal threshold.
    """
    choice = choice or GateChoice()
    gated = [rate for rate in rates if rate is not None]
    gates: dict[float | None, Gate] = {None: AlwaysOpen()} if None in rates else {}
    if gated:
        retain = list(task.tables("select", lm.cutter, SPARED).values())
        calibration: list[TokenTable] = []
        if choice.threshold == "conformal":
            near = task.tables("tune", lm.cutter, ("near",) if task.sources("near") else ("far",))
            retain, calibration = apart(retain, list(near.values()))
        forget = task.table(task.forget, "select", lm.cutter)
        gate = choice.fit(lm, forget, retain, seed=task.seed)
        if choice.threshold == "conformal":
            fitted = conformal_thresholds_at(lm, gate, calibration, gated)
        elif choice.threshold == "left_out":
            refit = partial(choice.fit, lm, forget, seed=task.seed)
            fitted = left_out_thresholds_at(
                lm, gate, refit, retain, list(task.tables("tune", lm.cutter, SPARED).values()), gated
            )
        else:
            fitted = thresholds_at(lm, gate, list(task.tables("tune", lm.cutter, SPARED).values()), gated)
        gates |= dict(zip(gated, fitted, strict=True))
    return gates


def gather_evidence(lm: HookedLM, task: Task) -> SelectionEvidence:
    """Collect what features are chosen from: SELECT text of every corpus that is not neutral.

    Args:
        lm: the model with its SAE.
        task: the corpora.
    """
    tables = task.tables("select", lm.cutter, ("forget", *SPARED))
    near, far = (tuple(tables[source] for source in task.sources(role)) for role in SPARED)
    return SelectionEvidence(lm, tables[task.forget], near, far)


def rankings(evidence: SelectionEvidence, grid: Grid, *, min_ratio: float) -> dict[str, tuple[int, ...]]:
    """Rank the features by every score of the grid, best first.

    Args:
        evidence: SELECT text of the corpora.
        grid: names the scores, and the time scales to restrict them to.
        min_ratio: the setting of the score `frequency_ratio`.

    Returns:
        Feature indices by score name; a score that finds no feature is left out.
    """
    found = {}
    for name in grid.scores:
        score = make_score(name, **({"min_ratio": min_ratio} if name == "frequency_ratio" else {}))
        if grid.scales:
            score = FromScales(score, grid.scales, grid.min_scale_share)
        found[name] = ranking(feature_scores(score, evidence))
    return {name: ranked for name, ranked in found.items() if ranked}


def ranked_candidates(evidence: SelectionEvidence, grid: Grid, gates: Gates, *, min_ratio: float) -> list[FeatureCandidate]:
    """Rank the features and make the candidates, with rankings for edits that are carried on where the kind of edit is such.

    Args:
        evidence: SELECT text of the corpora.
        grid: the settings that are tried.
        gates: gates by false-positive rate.
        min_ratio: the setting of the score `frequency_ratio`.

    Returns:
        All candidates; none if no score finds a feature.
    """
    found: list[FeatureCandidate] = []
    for carried in (False, True):
        kinds = tuple(kind for kind in grid.edits if EDIT_KINDS[kind].carried == carried)
        if kinds:
            part, known = replace(grid, edits=kinds), replace(evidence, carried=carried)
            found += feature_candidates(rankings(known, part, min_ratio=min_ratio), part, gates, known)
    return found


@dataclass(frozen=True, eq=False)
class FeatureCandidate(Candidate):
    """An edit of chosen features, as a candidate of the sweep."""

    features: tuple[int, ...]
    of: Callable[[Sequence[int]], Edit]
    """A function that makes the same edit of other features."""
    kind: str = "scale"
    """Name of the kind of edit in `EDIT_KINDS`."""
    multiplier: float | None = None
    """Strength of the edit; None for a kind without one."""
    error_rank: int = 0
    """Number of directions that are removed from the SAE's error too."""


def feature_candidates(
    rankings: Mapping[str, Sequence[int]], grid: Grid, gates: Gates, evidence: SelectionEvidence
) -> list[FeatureCandidate]:
    """Make the candidates: the first n features of every ranking, with every kind of edit, at every multiplier, behind every gate.

    Args:
        rankings: feature indices by score name, best first.
        grid: kinds of edit, numbers of features and multipliers.
        gates: gates by false-positive rate.
        evidence: SELECT text, from which a kind of edit computes what it needs.

    Returns:
        All candidates.
    """
    candidates = []
    remove = ErrorRemoval.fit(evidence, grid.error_ranks)
    for kind, (score, ranked) in product(grid.edits, rankings.items()):
        make, has_strength = EDIT_KINDS[kind].prepare(evidence), EDIT_KINDS[kind].has_strength
        strengths = grid.multipliers if has_strength else (0.0,)
        sizes = sorted({min(n, len(ranked)) for n in grid.n_features} - {0})
        for n, multiplier, (rate, gate), rank in product(sizes, strengths, gates.items(), remove.ranks):
            strength = multiplier if has_strength else None
            setting: Setting = {
                "score": score,
                "n_features": n,
                "edit": kind,
                "multiplier": strength,
                "false_positive_rate": rate,
                **_rank_setting(rank),
            }
            of = remove.added_to(partial(make, multiplier=multiplier, gate=gate), rank)
            candidates.append(FeatureCandidate(setting, of(ranked[:n]), tuple(ranked[:n]), of, kind, strength, rank))
    return candidates


@dataclass(frozen=True, eq=False)
class ErrorRemoval:
    """Directions of the SAE's error that are removed together with another edit, behind its gate."""

    ranks: tuple[int, ...]
    """How many of the directions may be removed; 0 for none."""
    basis: Float[Tensor, "n d_in"] | None = None
    center: Float[Tensor, " d_in"] | None = None

    @classmethod
    def fit(cls, evidence: SelectionEvidence, ranks: Sequence[int]) -> ErrorRemoval:
        """Fit the directions on SELECT text, if any are to be removed.

        Args:
            evidence: SELECT text of the corpora.
            ranks: numbers of directions; more than there are means all.
        """
        if not any(ranks):
            return cls((0,))
        basis, center = error_directions(evidence.lm, evidence.forget, evidence.near or evidence.far)
        return cls(tuple(sorted({min(rank, len(basis)) for rank in ranks})), basis, center)

    def added_to(self, make: Callable[[Sequence[int]], Edit], rank: int) -> Callable[[Sequence[int]], Edit]:
        """Return a function that makes the same edit and removes directions from the error.

        Args:
            make: a function that makes an edit of features.
            rank: number of directions; 0 for the same function.
        """
        return (lambda features: self.combined(make(features), rank)) if rank else make

    def combined(self, edit: Edit, rank: int) -> Edit:
        """Combine an edit with the removal of the first directions, behind the gate of the edit.

        Args:
            edit: the edit.
            rank: number of directions; 0 for the edit alone.
        """
        if not rank:
            return edit
        assert self.basis is not None
        assert self.center is not None
        return CombinedEdit((edit, ErrorEdit(self.basis[:rank], self.center)), edit.gate)


def direction_candidates(
    direction: Tensor, center: Tensor, multipliers: Sequence[float], gates: Gates, remove: ErrorRemoval | None = None
) -> list[Candidate]:
    """Make the candidates that edit a dense direction: at every multiplier, behind every gate.

    Args:
        direction: the direction at the hook, `(d_in,)`.
        center: the point that is kept, `(d_in,)`.
        multipliers: strengths of the edit.
        gates: gates by false-positive rate.
        remove: directions of the SAE's error that are removed too; None for none.
    """
    basis = (direction / direction.norm()).unsqueeze(0)
    remove = ErrorRemoval((0,)) if remove is None else remove
    return [
        Candidate(
            {
                "score": "difference_of_means",
                "n_features": 1,
                "multiplier": multiplier,
                "false_positive_rate": rate,
                **_rank_setting(rank),
            },
            remove.combined(DirectionEdit(basis, center, multiplier, gate), rank),
        )
        for multiplier, (rate, gate), rank in product(multipliers, gates.items(), remove.ranks)
    ]


def _rank_setting(rank: int) -> Setting:
    """Return what a setting says of the removed error; nothing if the error is kept."""
    return {"error_rank": rank} if rank else {}
