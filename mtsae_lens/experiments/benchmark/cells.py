"""Records of the benchmark's cells. Each cell is one saved trial, which the summary and the reports read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from mtsae_lens.records import Record
from mtsae_lens.unlearning.recovery.results import Recovery
from mtsae_lens.unlearning.results import CorpusEffect, DocumentEffect, FurtherMeasures, RandomControl
from mtsae_lens.unlearning.sweep import Outcome, Setting


@dataclass(frozen=True, kw_only=True)
class AttackOutcome(Record):
    """What the model knows of the forget text after an attack."""

    nll: float
    """Loss of the changed model, nats per token."""
    nll_clean: float
    """Loss of the model before any change, under the same attack if it changes the text or the weights."""
    exact_recall: float
    extraction_strength: float
    n_tokens: int


@dataclass(frozen=True, kw_only=True)
class RelearnedOutcome(AttackOutcome):
    """What the model knows after `step` steps of relearning."""

    step: int


RelearningCurve = tuple[RelearnedOutcome, ...]


@dataclass(frozen=True, kw_only=True)
class Attacks(Record):
    """The outcomes of all attacks on one change."""

    relearning: dict[str, dict[str, RelearningCurve]]
    """Curves by variant of the attack, and by what the attacker has: a number of documents, or `others`."""
    dilution: AttackOutcome
    """Outcome on the forget text after unrelated text."""
    quantization: Annotated[dict[str, AttackOutcome], Field(alias="quantisation")]
    """Outcomes by number of bits. The key in JSON is `quantisation`."""
    unseen: AttackOutcome | None = None
    """Outcome on questions in other words; None for text."""
    recovery: Recovery | None = None
    """What perturbations at the hook bring back; None in cells of earlier versions."""


@dataclass(frozen=True, kw_only=True)
class MeasuredCorpus(CorpusEffect):
    """The effect of a change on one corpus, with its documents, from which intervals over seeds are computed later."""

    documents: tuple[DocumentEffect, ...]


@dataclass(frozen=True, kw_only=True)
class DrawnDocument(Record):
    """The mean change of one document over random draws, in nats per token."""

    document: str
    n_tokens: int
    nll_delta: float


@dataclass(frozen=True, kw_only=True)
class MeasuredControl(RandomControl):
    """The effect of the same edit of matched random features on one corpus, with its documents."""

    documents: tuple[DrawnDocument, ...]


@dataclass(frozen=True, kw_only=True)
class ReadSetting(Record):
    """One setting chosen from a sweep, measured on TEST."""

    setting: Setting
    corpora: dict[str, MeasuredCorpus]
    """Effects by source."""
    random: dict[str, MeasuredControl] | None = None
    """Effects of matched random features, by source; None if they were not measured."""


@dataclass(frozen=True, kw_only=True)
class MethodResult(Record):
    """The results of one method with one seed."""

    tune: tuple[Outcome, ...]
    test: dict[str, ReadSetting]
    """Results by budget, under the keys of `most` and `nearest`; budgets that no setting meets are missing."""
    main: FurtherMeasures | None = None
    """Further measures of the main setting; None if it was not measured in full."""
    attacks: Attacks | None = None
    """Attacks on the main setting; None if it was not attacked."""


@dataclass(frozen=True, kw_only=True)
class Cell(Record):
    """Base class of cells."""

    seconds: float | None = None
    """Duration of the cell's computation, in seconds."""


@dataclass(frozen=True, kw_only=True)
class MethodsCell(Cell):
    """The results of one SAE or of one loss, with one seed."""

    methods: dict[str, MethodResult]
    identity_error: float | None = None
    """Largest change of a logit by the splice without an edit; None for methods that change weights."""


@dataclass(frozen=True, kw_only=True)
class ReferenceCell(Cell):
    """The reference (the model trained without the forget text), measured as if it were a changed model."""

    corpora: dict[str, MeasuredCorpus]
    main: FurtherMeasures
    untouched: FurtherMeasures
    """Measures of the model before any change."""
    attacks: Attacks | None = None


@dataclass(frozen=True, kw_only=True)
class SeedOverlap(Record):
    """How closely features chosen with one seed match those chosen with another, averaged over pairs of seeds."""

    cosine: float
    chance: float
    n_pairs: int


@dataclass(frozen=True, kw_only=True)
class ScoreStability(Record):
    """How reproducible the best features of one score are."""

    n_features: int
    halves: float | None
    """Jaccard overlap of the choices from two halves of the documents; None if a half has too few features."""
    chance: float
    """Jaccard overlap of random choices."""
    seeds: SeedOverlap | None
    """Overlap across seeds; None if there is only one seed."""


@dataclass(frozen=True, kw_only=True)
class StabilityCell(Cell):
    """How reproducible the choice of features is with one architecture, by score."""

    stability: dict[str, ScoreStability]


def read_cell(name: str, content: Mapping[str, Any]) -> Cell:
    """Read a saved cell; the name determines its kind.

    Args:
        name: such as `domain/mtsae/0`, `domain/reference` or `domain/stability/mtsae-5`.
        content: JSON of the cell.
    """
    kind = name.split("/")[1]
    if kind == "reference":
        return ReferenceCell.from_json(content)
    return (StabilityCell if kind == "stability" else MethodsCell).from_json(content)
