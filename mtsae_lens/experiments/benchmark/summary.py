"""Average the cells of a task over seeds, with intervals over seeds and documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtsae_lens.data.questions import is_question_source
from mtsae_lens.experiments.benchmark.cells import MeasuredControl, MeasuredCorpus, MethodResult, ReadSetting
from mtsae_lens.records import Interval, Record
from mtsae_lens.unlearning.measures.bootstrap import two_level_interval
from mtsae_lens.unlearning.task import Task


@dataclass(frozen=True)
class SeedInterval(Interval):
    """A mean over seeds with its 95% interval over seeds and documents."""

    n_seeds: int
    n_documents: int


@dataclass(frozen=True)
class AtCost(Record):
    """One method at one budget, on TEST, in nats per counted token."""

    forget: SeedInterval
    near: SeedInterval | None
    """Increase on the near corpus that is affected most; None without near text."""
    far: SeedInterval
    corpora: dict[str, SeedInterval]
    """Increase on every other corpus, by source."""
    gap: SeedInterval | None
    """Loss of the changed model on the forget text minus the reference's, paired by document; None without a reference."""
    exact_recall: SeedInterval | None
    """Share of questions answered exactly; None for text."""
    random: SeedInterval | None
    """Increase by the same edit of matched random features, on the forget text."""
    more_than_random: SeedInterval | None
    """Increase by the edit minus that by random features, paired."""
    n_missing: int
    """Number of seeds without a setting within the budget on TUNE."""


def at_cost(
    results: Sequence[MethodResult], budget: str, task: Task, reference: MeasuredCorpus | None = None, seed: int = 0
) -> AtCost | None:
    """Summarize what a method reaches within a budget.

    Args:
        results: results of the method, one per seed.
        budget: key of the budget, as `most` and `nearest` return it.
        task: the corpora and their roles.
        reference: the effect of the reference on the forget text; None without a reference.
        seed: seed of the resampling.

    Returns:
        The summary; None if no seed has a setting within the budget.
    """
    rows = [result.test[budget] for result in results if budget in result.test]
    if not rows:
        return None
    forget = [row.corpora[task.forget] for row in rows]
    randoms = [row.random[task.forget] for row in rows if row.random is not None]
    return AtCost(
        forget=_estimate([_of_documents(row) for row in forget], seed),
        near=_worst(rows, task.sources("near"), seed) if task.sources("near") else None,
        far=_worst(rows, task.sources("far"), seed),
        corpora={
            source: _estimate([_of_documents(row.corpora[source]) for row in rows], seed)
            for source in task.sources("near", "far", "neutral")
        },
        gap=_estimate([_beyond(row, reference) for row in forget], seed) if reference is not None else None,
        exact_recall=_estimate([_recalled(row) for row in forget], seed) if is_question_source(task.forget) else None,
        random=_estimate([_of_documents(row) for row in randoms], seed) if randoms else None,
        more_than_random=_estimate([_beyond(*pair) for pair in zip(forget, randoms, strict=True)], seed) if randoms else None,
        n_missing=len(results) - len(rows),
    )


def difference(
    ours: Sequence[MethodResult], theirs: Sequence[MethodResult], budget: str, task: Task, seed: int = 0
) -> SeedInterval | None:
    """Measure how much more forgetting one method reaches than another within a budget, paired by seed and document.

    Args:
        ours: results of the one method, one per seed.
        theirs: results of the other method.
        budget: key of the budget.
        task: the corpora and their roles.
        seed: seed of the resampling.

    Returns:
        The difference in nats per token; None if no seed has settings of both within the budget.
    """
    pairs = [
        (one.test[budget].corpora[task.forget], other.test[budget].corpora[task.forget])
        for one, other in zip(ours, theirs, strict=False)
        if budget in one.test and budget in other.test
    ]
    return _estimate([_beyond(*pair) for pair in pairs], seed) if pairs else None


def _of_documents(measured: MeasuredCorpus | MeasuredControl) -> tuple[Tensor, Tensor]:
    """Return the summed change and the tokens of every document."""
    n_tokens = torch.tensor([float(d.n_tokens) for d in measured.documents], dtype=torch.float64)
    return torch.tensor([d.nll_delta for d in measured.documents], dtype=torch.float64) * n_tokens, n_tokens


def _recalled(measured: MeasuredCorpus) -> tuple[Tensor, Tensor]:
    """Return how many questions about each person are answered exactly, and how many there are."""
    n_questions = torch.tensor([float(d.n_contexts) for d in measured.documents], dtype=torch.float64)
    return torch.tensor([d.exact_recall for d in measured.documents], dtype=torch.float64) * n_questions, n_questions


def _beyond(measured: MeasuredCorpus, other: MeasuredCorpus | MeasuredControl) -> tuple[Tensor, Tensor]:
    (sums, n_tokens), (others, _) = _of_documents(measured), _of_documents(other)
    return sums - others, n_tokens


def _estimate(pairs: Sequence[tuple[Tensor, Tensor]], seed: int) -> SeedInterval:
    sums, n_tokens = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    mean = sum((s.sum() / n.sum()).item() for s, n in pairs) / len(pairs)
    low, high = two_level_interval(sums, n_tokens, seed)
    return SeedInterval(mean, low, high, len(pairs), len(sums[0]))


def _worst(rows: Sequence[ReadSetting], sources: Sequence[str], seed: int) -> SeedInterval:
    estimates = [_estimate([_of_documents(row.corpora[source]) for row in rows], seed) for source in sources]
    return max(estimates, key=lambda estimate: estimate.mean)
