"""Select the peaks of examples that are measured one by one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from mtsae_lens.exploration.survey import Survey


@dataclass(frozen=True, eq=False)
class Peaks:
    """One entry per (feature, rank); rows of `tokens` are distinct contexts."""

    feature: Int[Tensor, " peak"]
    rank: Int[Tensor, " peak"]
    position: Int[Tensor, " peak"]
    context: Int[Tensor, " peak"]  # row of `tokens`
    tokens: Int[Tensor, "context pos"]

    def __len__(self) -> int:
        return len(self.feature)

    def select(self, rows: Int[Tensor, " chosen"]) -> Peaks:
        """Return some of the peaks.

        Args:
            rows: their indices.
        """
        return Peaks(self.feature[rows], self.rank[rows], self.position[rows], self.context[rows], self.tokens)


def find_strongest_peaks(survey: Survey, n: int) -> Peaks:
    """Find the peaks of the strongest examples of every feature.

    Args:
        survey: the finished pass.
        n: examples per feature, at most.
    """
    examples = survey.lists["top"]
    slots = examples.order(survey.plan.before)[:, :n]
    context = examples.context.gather(1, slots).long()
    feature, rank = (context >= 0).nonzero().unbind(dim=1)
    numbers, row = context[feature, rank].unique(return_inverse=True)
    tokens = [survey.held[number][1].long() for number in numbers.tolist()]
    size = survey.lm.cutter.context_size
    return Peaks(
        feature,
        rank,
        examples.position.gather(1, slots)[feature, rank].long(),
        row,
        torch.stack(tokens) if tokens else torch.empty(0, size, dtype=torch.long),
    )
