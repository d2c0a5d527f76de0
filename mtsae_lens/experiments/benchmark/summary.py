"""All trials of a task as estimates over seeds and documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtsae_lens.data.facts import is_fact_source
from mtsae_lens.unlearning.measures.bootstrap import two_level_interval
from mtsae_lens.unlearning.task import Task


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95% interval over seeds and documents."""

    mean: float
    low: float
    high: float
    n_seeds: int
    n_documents: int


@dataclass(frozen=True)
class AtCost:
    """One method at one budget, on TEST, in nats per counted token."""

    forget: Estimate
    near: Estimate | None
    """Of the near-retain corpus that lost most; None without one."""
    far: Estimate
    corpora: Mapping[str, Estimate]
    """Of every other corpus, by source."""
    gap: Estimate | None
    """What the changed model loses more on the forget text than the reference, paired by document; None without a reference."""
    exact_recall: Estimate | None
    """Share of questions answered exactly; None of text."""
    random: Estimate | None
    """The same edit of matched random features, on the forget text."""
    more_than_random: Estimate | None
    """Paired."""
    n_missing: int
    """Seeds without a setting within the budget on TUNE."""


Cells = Sequence[Mapping[str, Any]]
"""Results of one method, one per seed."""


def at_cost(cells: Cells, budget: str, task: Task, reference: Mapping[str, Any] | None = None, seed: int = 0) -> AtCost | None:
    """What a method reaches within a budget; None if no seed found a setting. `reference`: its row of the forget text."""
    rows = [cell["test"][budget] for cell in cells if budget in cell["test"]]
    if not rows:
        return None
    forget = [row["corpora"][task.forget] for row in rows]
    randoms = [row["random"][task.forget] for row in rows if "random" in row]
    return AtCost(
        forget=_estimate([_of_documents(row) for row in forget], seed),
        near=_worst(rows, task.sources("near"), seed) if task.sources("near") else None,
        far=_worst(rows, task.sources("far"), seed),
        corpora={
            source: _estimate([_of_documents(row["corpora"][source]) for row in rows], seed)
            for source in task.sources("near", "far", "neutral")
        },
        gap=_estimate([_beyond(row, reference) for row in forget], seed) if reference is not None else None,
        exact_recall=_estimate([_recalled(row) for row in forget], seed) if is_fact_source(task.forget) else None,
        random=_estimate([_of_documents(row) for row in randoms], seed) if randoms else None,
        more_than_random=_estimate([_beyond(*pair) for pair in zip(forget, randoms, strict=True)], seed) if randoms else None,
        n_missing=len(cells) - len(rows),
    )


def difference(ours: Cells, theirs: Cells, budget: str, task: Task, seed: int = 0) -> Estimate | None:
    """How much more of the forget text's loss one method adds than another within a budget; paired by seed and document."""
    pairs = [
        (one["test"][budget]["corpora"][task.forget], other["test"][budget]["corpora"][task.forget])
        for one, other in zip(ours, theirs, strict=False)
        if budget in one["test"] and budget in other["test"]
    ]
    return _estimate([_beyond(*pair) for pair in pairs], seed) if pairs else None


def _delta(document: Mapping[str, Any]) -> float:
    return document["nll_delta"] if "nll_delta" in document else document["nll_edited"] - document["nll_clean"]


def _of_documents(row: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Summed change and tokens of every document."""
    n_tokens = torch.tensor([float(d["n_tokens"]) for d in row["documents"]], dtype=torch.float64)
    return torch.tensor([_delta(d) for d in row["documents"]], dtype=torch.float64) * n_tokens, n_tokens


def _recalled(row: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Of every person, questions that are answered exactly and questions."""
    n_questions = torch.tensor([float(d["n_contexts"]) for d in row["documents"]], dtype=torch.float64)
    return torch.tensor([d["exact_recall"] for d in row["documents"]], dtype=torch.float64) * n_questions, n_questions


def _beyond(row: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    (sums, n_tokens), (others, _) = _of_documents(row), _of_documents(other)
    return sums - others, n_tokens


def _estimate(pairs: Sequence[tuple[Tensor, Tensor]], seed: int) -> Estimate:
    sums, n_tokens = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    mean = sum((s.sum() / n.sum()).item() for s, n in pairs) / len(pairs)
    low, high = two_level_interval(sums, n_tokens, seed)
    return Estimate(mean, low, high, len(pairs), len(sums[0]))


def _worst(rows: Sequence[Mapping[str, Any]], sources: Sequence[str], seed: int) -> Estimate:
    estimates = [_estimate([_of_documents(row["corpora"][source]) for row in rows], seed) for source in sources]
    return max(estimates, key=lambda estimate: estimate.mean)
