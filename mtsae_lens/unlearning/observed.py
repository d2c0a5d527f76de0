"""What a gate would read in the contexts of a corpus, gathered once so that a gate can be fitted on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.progress import track
from mtsae_lens.splice.evidence_gates import Source
from mtsae_lens.splice.hooked_lm import HookedLM

MAX_POSITIONS = 48  # of each context: a gate has to be sure early, and the filter carries on from there


@dataclass(frozen=True, eq=False)
class Observed:
    """What a gate would read in the contexts of one corpus.

    Args:
        rows: features or activations, zero where nothing is read.
        is_step: False where nothing is read.
        at: the position at which each context is judged; None to judge it everywhere.
    """

    rows: Float[Tensor, "context pos d"]
    is_step: Bool[Tensor, "context pos"]
    at: Int[Tensor, " context"] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def padded(self, length: int) -> Observed:
        """Return the same contexts, padded on the right with positions where nothing is read.

        Args:
            length: number of positions.
        """
        n_more = length - self.rows.shape[1]
        return replace(self, rows=pad(self.rows, (0, 0, 0, n_more)), is_step=pad(self.is_step, (0, n_more)))


Read = Callable[[Int[Tensor, "batch pos"]], Float[Tensor, "batch pos d"]]


def reader(lm: HookedLM, reads: Source) -> Read:
    """Return the function from tokens to what a gate reads.

    Args:
        lm: the model with its SAE.
        reads: features, or activations at the hook.
    """
    if reads == "features":
        return lm.feature_acts
    return lambda tokens: lm.sae_input(tokens).flatten(2)


@torch.no_grad()
def observe_table(lm: HookedLM, table: TokenTable, read: Read, max_positions: int | None = MAX_POSITIONS) -> Observed:
    """Read the contexts of a corpus. Questions are judged where their answer begins, other text at every position.

    Args:
        lm: the model with its SAE.
        table: the contexts.
        read: what is read (`reader`).
        max_positions: number of positions to read in each context of text; None for all.
    """
    rows, is_step, at = [], [], []
    for whole, counted, _ in track(lm.counted_batches(table), f"reading {table.corpus}", "batch"):
        tokens = whole if table.answers is not None else whole[:, :max_positions]
        kept = ~lm.masked(tokens)
        rows.append(read(tokens).masked_fill(~kept.unsqueeze(-1), 0.0).float())
        is_step.append(kept)
        at.append(counted.float().argmax(dim=1))
    return Observed(torch.cat(rows), torch.cat(is_step), None if table.answers is None else torch.cat(at))
