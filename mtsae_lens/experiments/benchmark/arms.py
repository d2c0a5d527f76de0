"""Define what the benchmark compares, and with which settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtsae_lens.data.questions import is_question_source
from mtsae_lens.export.low_rank import LowRankSettings
from mtsae_lens.sae.config import ARCHITECTURE
from mtsae_lens.unlearning.candidates import Grid
from mtsae_lens.unlearning.gate_kinds import GateChoice
from mtsae_lens.unlearning.recovery.perturbation import RecoverySettings
from mtsae_lens.unlearning.task import ALL_QUESTIONS, SPARED, Corpus, Task

OURS = ARCHITECTURE

SAES: dict[str, dict[str, Any]] = {
    OURS: {"k": 32},
    "topk": {"k": 32},
    "batchtopk": {"k": 32},
    "jumprelu": {"l0_coefficient": 0.2},
    "standard": {"l1_coefficient": 1.2},
}
"""SAELens architectures of equal width; the two coefficients give an L0 near 32 at the end of training on the embedded model (seed 0)."""

BUDGETS = (0.01, 0.02, 0.05, 0.1)
"""Budgets at which methods are compared: nats per counted token that near and far text may lose."""

MAIN_BUDGET = 0.05
"""The budget of the main edit, whose forgetting is nearest to the reference's; it is measured in full and attacked."""

CONTROL_BUDGETS = (0.02, 0.05)
"""Budgets at which matched random features are measured as a control."""

DIRECTION_MULTIPLIERS = (0.0, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class BenchmarkSize:
    """How much work the benchmark does."""

    training_tokens: int = 600_000
    d_sae: int = 1_024
    contexts_per_split: int = 24
    max_select_questions: int = ALL_QUESTIONS
    gated: Grid = field(
        default_factory=lambda: Grid(
            scores=("frequency_difference", "frequency_ratio", "fisher_attribution"),
            n_features=(8, 32, 128),
            multipliers=(1.0, 2.0, 4.0),
            false_positive_rates=(0.002, 0.01, 0.05),
        )
    )
    gated_questions: Grid = field(
        default_factory=lambda: Grid(
            scores=("frequency_difference",),
            n_features=(64, 96, 128),
            multipliers=(-0.3, -0.2, -0.1, 0.0),
            false_positive_rates=(0.002, 0.01, 0.05),
            edits=("project",),
        )
    )
    """The grid behind a gate of known groups (`KNOWN_GROUPS`), which recognizes people, so that the edit need not be specific to them.
    A multiplier below 0 keeps a part of what is projected out."""
    ungated: Grid = field(
        default_factory=lambda: Grid(
            scores=("frequency_difference", "fisher_attribution"),
            n_features=(2, 8, 32),
            multipliers=(0.0, 1.0, 2.0),
            false_positive_rates=(None,),
        )
    )
    n_random_draws: int = 20
    relearned_documents: tuple[int, ...] = (4, 16, 64)
    """Documents of the forget text (for questions: people) that an attacker has, with all of their training contexts."""
    n_relearning_steps: int = 60
    """Number of the attacker's updates."""
    recovery: RecoverySettings = field(default_factory=RecoverySettings)
    """How perturbations at the hook are searched."""
    low_rank: LowRankSettings = field(default_factory=LowRankSettings)
    """How low-rank weights are trained to imitate the main edit of the MTSAE."""


QUICK = BenchmarkSize(
    training_tokens=120_000,
    contexts_per_split=6,
    max_select_questions=120,
    gated=Grid(
        scores=("frequency_difference",), n_features=(32, 128), multipliers=(1.0, 4.0), false_positive_rates=(0.01, 0.05)
    ),
    gated_questions=Grid(
        scores=("frequency_difference",),
        n_features=(64, 128),
        multipliers=(-0.1, 0.0),
        false_positive_rates=(0.01, 0.05),
        edits=("project",),
    ),
    ungated=Grid(scores=("frequency_difference",), n_features=(8, 32), multipliers=(0.0, 2.0), false_positive_rates=(None,)),
    n_random_draws=5,
    relearned_documents=(16,),
    n_relearning_steps=10,
    recovery=RecoverySettings(n_steps=10, n_context_steps=0, n_random=1),
    low_rank=LowRankSettings(n_steps=20),
)
QUICK_LOSSES = ("gradient_difference", "npo", "rmu")
"""Losses of a quick run, which shows in minutes that everything runs; its SAEs are hardly trained."""


KNOWN_GROUPS = GateChoice("known_groups_activations")


def choose_gate(corpora: Sequence[Corpus]) -> GateChoice:
    """Return which gate is fitted: one of known groups if there are questions to forget and others to keep.

    Args:
        corpora: the corpora of a task.
    """
    asked = {corpus.role for corpus in corpora if is_question_source(corpus.source)}
    return KNOWN_GROUPS if "forget" in asked and asked & set(SPARED) else GateChoice()


@dataclass(frozen=True)
class BenchmarkTask:
    """A task and the training text of methods that change weights."""

    name: str
    corpora: tuple[Corpus, ...]
    forget_training: str
    retain_training: tuple[str, ...]
    unseen: str | None = None
    """Questions about the same facts in other words, for an attack; None if there are none."""

    @property
    def gate(self) -> GateChoice:
        """Return which gate is fitted."""
        return choose_gate(self.corpora)

    def gated(self, size: BenchmarkSize) -> Grid:
        """Return the settings that are tried behind the gate.

        Args:
            size: how much work to do.
        """
        return size.gated_questions if self.gate == KNOWN_GROUPS else size.gated

    def task(self, contexts_per_split: int, max_select_questions: int = ALL_QUESTIONS) -> Task:
        """Return the task.

        Args:
            contexts_per_split: largest number of contexts per corpus and split.
            max_select_questions: largest number of questions per corpus on SELECT.
        """
        return Task(self.corpora, contexts_per_split, far_share=0.5, max_select_questions=max_select_questions)


_FAR = ("sotu", "austen", "factbook", "pydocs")
_NEUTRAL = ("wordnet", "jargon")


def _corpora(forget: str, near: tuple[str, ...], neutral: tuple[str, ...]) -> tuple[Corpus, ...]:
    return (
        Corpus(forget, "forget"),
        *(Corpus(source, "near") for source in near),
        *(Corpus(source, "far") for source in _FAR),
        *(Corpus(source, "neutral") for source in neutral),
    )


TASKS: Mapping[str, BenchmarkTask] = {
    "domain": BenchmarkTask(
        "domain", _corpora("kjv", ("milton", "shakespeare"), _NEUTRAL), "kjv", ("milton", "shakespeare", *_FAR)
    ),
    "people": BenchmarkTask(
        "people",
        _corpora(
            "facts:forget:known",
            ("facts:retain:known", "biographies:retain"),
            ("facts:strangers:known", "biographies:strangers", "facts:retain:unseen", *_NEUTRAL),
        ),
        "facts:forget:known",
        ("facts:retain:known", "biographies:retain", *_FAR),
        unseen="facts:forget:unseen",
    ),
}
"""Tasks on the embedded model: forget scripture, or 40 of 200 invented people. Retained people appear in questions and in running text,
because a question measures a single position, and an edit that spares it may still damage every sentence about them."""
