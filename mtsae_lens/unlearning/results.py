"""Records of an unlearning experiment, as measurements pass them to reports, to `metrics.json` and to saved trials."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from mtsae_lens.records import Interval, Record
from mtsae_lens.unlearning.measures.distance import ReferenceDistance, TruthRatioDistance
from mtsae_lens.unlearning.measures.gate_quality import GateQuality
from mtsae_lens.unlearning.measures.generations import GenerationHealth, Sample
from mtsae_lens.unlearning.recovery.results import Recovery
from mtsae_lens.unlearning.sweep import Outcome, Setting
from mtsae_lens.unlearning.task import Role


@dataclass(frozen=True, kw_only=True)
class CorpusEffect(Record):
    """The effect of one change of the model on one corpus: losses and KL in nats per counted token, shares between 0 and 1."""

    nll_clean: float
    """Loss of the model before the change."""
    nll_edited: float
    """Loss of the changed model."""
    perplexity_clean: float
    perplexity_edited: float
    nll_delta: float
    """Nats added per token: `nll_edited - nll_clean`."""
    nll_delta_low: float
    """Lower end of its 95% interval over documents."""
    nll_delta_high: float
    kl: float
    """`KL(clean || edited)`."""
    top1_agreement: float
    exact_memorisation: float
    extraction_strength: float
    exact_recall: float
    gate_open: float
    """Share of unmasked positions at which the edit applied; 1 for other weights."""
    n_tokens: int
    n_contexts: int
    n_documents: int

    @property
    def change(self) -> Interval:
        """Return the increase of the loss in nats per token, with its 95% interval over documents."""
        return Interval(self.nll_delta, self.nll_delta_low, self.nll_delta_high)


@dataclass(frozen=True, kw_only=True)
class EditedCorpus(CorpusEffect):
    """The effect of the chosen edit on one corpus of the task."""

    role: Role
    nll_reference: float | None = None
    """Loss of the reference, which was trained without the forget text; None without a reference."""


@dataclass(frozen=True, kw_only=True)
class DocumentEffect(Record):
    """The effect of one change on one document (for questions: one person), in nats per counted token and shares."""

    document: str
    n_tokens: int
    nll_clean: float
    nll_edited: float
    kl: float
    top1_agreement: float
    exact_memorisation: float
    n_contexts: int
    exact_recall: float

    @property
    def nll_delta(self) -> float:
        """Return the increase of the loss, in nats per token."""
        return self.nll_edited - self.nll_clean


@dataclass(frozen=True, kw_only=True)
class RandomControl(Record):
    """The effect of the same edit of matched random features on one corpus: the mean over draws, and the smallest and largest change."""

    nll_clean: float
    nll_edited: float
    nll_delta: float
    nll_delta_min: float
    nll_delta_max: float
    n_draws: int
    n_tokens: int

    @property
    def change(self) -> Interval:
        """Return the increase of the loss in nats per token, from the smallest to the largest over draws."""
        return Interval(self.nll_delta, self.nll_delta_min, self.nll_delta_max)


@dataclass(frozen=True)
class GenerationComparison(Record):
    """Greedy continuations of the same prompts before and after the change."""

    clean: GenerationHealth
    edited: GenerationHealth


@dataclass(frozen=True, kw_only=True)
class FurtherMeasures(Record):
    """Measures of one change on TEST that take more than one pass over the text."""

    calibrated_nll_delta: float
    """Increase of the loss on the forget text after an output bias is refitted, in nats per token."""
    gate: GateQuality | None = None
    """None for a change of weights."""
    reference: ReferenceDistance | None = None
    """None without a reference model."""
    truth_ratio: TruthRatioDistance | None = None
    """None without a reference model, or if the forget text is not questions."""
    generation: dict[str, GenerationComparison]
    """Comparisons by source; empty for an edit whose gate is not causal."""
    samples: dict[str, tuple[Sample, ...]]
    """Sample texts by source."""


SAME_EDIT = 1e-4
"""Nats per token below which the edit of random features is the same edit: its directions span the whole activation."""


@dataclass(frozen=True, kw_only=True)
class ChosenEdit(Record):
    """The edit that was chosen on SELECT and TUNE."""

    setting: Setting
    features: tuple[int, ...]
    n_features: int
    edit: str
    """What is done to the features, as a formula."""
    multiplier: float | None
    """None for an edit without a strength."""
    error_rank: int = 0
    """Number of directions that are removed from the SAE's error too."""
    gate: str = "where the gate is open"
    """Where the edit applies, as the end of a sentence."""


@dataclass(frozen=True, kw_only=True)
class EditResult(FurtherMeasures):
    """Everything that is measured for an edit on TEST."""

    corpora: dict[str, EditedCorpus]
    random_control: dict[str, RandomControl]
    """Effect of the matched random edits, by corpus."""
    baselines: Annotated[dict[str, dict[str, CorpusEffect]], Field(alias="ladder")]
    """Effects by baseline (`zero`, `clamp`, and `gated_clamp`, the edit itself) and corpus. The key in JSON is `ladder`."""
    documents: dict[str, tuple[DocumentEffect, ...]]
    """Effects of the edit on each document, by corpus."""
    identity_error: float
    """Largest change of a logit by the splice without an edit."""
    recovery: Recovery | None = None
    """How much of the forgetting a perturbation at the hook brings back; None if it was not attacked."""

    @property
    def forget(self) -> str:
        """Return the name of the corpus to forget."""
        return next(name for name, effect in self.corpora.items() if effect.role == "forget")


@dataclass(frozen=True, kw_only=True)
class UnlearningResult(EditResult):
    """The record of one unlearning experiment: what was chosen, what was tried, and the results on TEST."""

    chosen: ChosenEdit
    tune_sweep: tuple[Outcome, ...]
