"""Records of the benchmark's cells: each is one kept trial, read back by the summary and by reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from mtsae_lens.records import Record
from mtsae_lens.unlearning.results import CorpusEffect, DocumentEffect, FurtherMeasures, RandomControl
from mtsae_lens.unlearning.sweep import Outcome, Setting


@dataclass(frozen=True, kw_only=True)
class AttackOutcome(Record):
    """What is known of the forget text after an attack."""

    nll: float
    """Loss of the changed model, nats per token."""
    nll_clean: float
    """Loss of the model before any change, under the same attack where it changes the text or the weights."""
    exact_recall: float
    extraction_strength: float
    n_tokens: int


@dataclass(frozen=True, kw_only=True)
class RelearnedOutcome(AttackOutcome):
    """What is known after so many steps of relearning."""

    step: int


RelearningCurve = tuple[RelearnedOutcome, ...]


@dataclass(frozen=True, kw_only=True)
class Attacks(Record):
    """Everything that was tried to bring the forget text back."""

    relearning: dict[str, dict[str, RelearningCurve]]
    """By variant of the attack, and by what the attacker has: a number of documents, or `others`."""
    dilution: AttackOutcome
    """The forget text behind unrelated text."""
    quantization: Annotated[dict[str, AttackOutcome], Field(alias="quantisation")]
    """By number of bits. The key in JSON is `quantisation`."""
    unseen: AttackOutcome | None = None
    """Questions in other words; None for text."""


@dataclass(frozen=True, kw_only=True)
class MeasuredCorpus(CorpusEffect):
    """The effect of a change on one corpus, with its documents, from which intervals over seeds are made afterwards."""

    documents: tuple[DocumentEffect, ...]


@dataclass(frozen=True, kw_only=True)
class DrawnDocument(Record):
    """The mean change of one document over random draws, nats per token."""

    document: str
    n_tokens: int
    nll_delta: float


@dataclass(frozen=True, kw_only=True)
class MeasuredControl(RandomControl):
    """The same edit of matched random features on one corpus, with its documents."""

    documents: tuple[DrawnDocument, ...]


@dataclass(frozen=True, kw_only=True)
class ReadSetting(Record):
    """One setting that was read off a sweep, measured on TEST."""

    setting: Setting
    corpora: dict[str, MeasuredCorpus]
    """By source."""
    random: dict[str, MeasuredControl] | None = None
    """Matched random features, by source; None where they were not measured."""


@dataclass(frozen=True, kw_only=True)
class MethodResult(Record):
    """One method with one seed."""

    tune: tuple[Outcome, ...]
    test: dict[str, ReadSetting]
    """By budget, as `most` and `nearest` name it; without the budgets that no setting meets."""
    main: FurtherMeasures | None = None
    """Further measures of the main setting; None where it was not measured in full."""
    attacks: Attacks | None = None
    """Attacks on the main setting; None where it was not attacked."""


@dataclass(frozen=True, kw_only=True)
class Cell(Record):
    """Base class of cells."""

    seconds: float | None = None
    """How long the cell took."""


@dataclass(frozen=True, kw_only=True)
class MethodsCell(Cell):
    """The results of one SAE or of one loss, with one seed."""

    methods: dict[str, MethodResult]
    identity_error: float | None = None
    """Largest change of a logit by the splice without an edit; None for methods that change weights."""


@dataclass(frozen=True, kw_only=True)
class ReferenceCell(Cell):
    """The model that was trained without the forget text, measured as if it were a changed model."""

    corpora: dict[str, MeasuredCorpus]
    main: FurtherMeasures
    untouched: FurtherMeasures
    """The model before any change."""
    attacks: Attacks | None = None


@dataclass(frozen=True, kw_only=True)
class SeedOverlap(Record):
    """How nearly features chosen with one seed are found among those chosen with another, mean over pairs of seeds."""

    cosine: float
    chance: float
    n_pairs: int


@dataclass(frozen=True, kw_only=True)
class ScoreStability(Record):
    """How far the first features of one score repeat."""

    n_features: int
    halves: float | None
    """Jaccard overlap of the choices from two halves of the documents; None where a half has too few features."""
    chance: float
    """The overlap of random choices."""
    seeds: SeedOverlap | None
    """None with one seed."""


@dataclass(frozen=True, kw_only=True)
class StabilityCell(Cell):
    """How far the choice of features repeats with one architecture, by score."""

    stability: dict[str, ScoreStability]


def read_cell(name: str, content: Mapping[str, Any]) -> Cell:
    """Read a kept cell; its name says of which kind it is.

    Args:
        name: such as `domain/mtsae/0`, `domain/reference` or `domain/stability/mtsae-5`.
        content: JSON of the cell.
    """
    kind = name.split("/")[1]
    if kind == "reference":
        return ReferenceCell.from_json(content)
    return (StabilityCell if kind == "stability" else MethodsCell).from_json(content)
