"""Training batches from blocks of whole sequences, in an order that can be entered at any step.

A source yields numbered blocks of contexts. What step s sees depends on the source, the seed and s alone, so a resumed run needs no
saved buffer. A mask beside the activations says which positions are masked, whatever the activations there are.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtsae_lens.data.masks import zero_rows
from mtsae_lens.data.massive import find_massive
from mtsae_lens.data.notices import tell_once
from mtsae_lens.errors import DataError

Gather = Callable[
    [Tensor, Tensor], Callable[[Tensor], Tensor]
]  # contexts, which positions are masked -> (flat positions -> rows)


def gather_tokens(
    h: Float[Tensor, "batch pos d_in"], masked: Bool[Tensor, "batch pos"]
) -> Callable[[Int[Tensor, " row"]], Float[Tensor, "row d_in"]]:
    """Return a function from flat positions, `context * n_positions + position`, to their activations.

    Args:
        h: contexts.
        masked: the positions that are masked; a row of its activations alone does not depend on them.
    """
    del masked
    return h.flatten(0, 1).__getitem__


@dataclass(frozen=True, eq=False)
class Block:
    """Contexts that are in memory at once, and which of their positions are masked."""

    number: int
    """The place of the block in the stream, from 0."""
    h: Float[Tensor, "batch pos width"]
    """The activations of the contexts. Those at masked positions are not used, whatever they are."""
    masked: Bool[Tensor, "batch pos"]
    """The masked positions, such as special tokens and position 0, on the device of `h`. They are not trained on, enter no statistic, and are
    walls to a temporal SAE."""


class SequenceBlocks(ABC):
    """An endless stream of training batches; see the module for its order.

    `batch_size_sequences` contexts make a batch and `block_size_batches` batches a block, which is what is in memory at once:
    `block_size_batches * batch_size_sequences * context_size * d_in` numbers.
    """

    batch_size_sequences: int
    block_size_batches: int
    seed: int

    @abstractmethod
    def blocks(self, first: int) -> Generator[Block, None, None]:
        """Yield every block from number `first` on."""

    def context_order(self, number: int, n_contexts: int) -> Int[Tensor, " context"]:
        """Return the order in which training reads the contexts of a block; here, the order that they are in.

        Args:
            number: of the block.
            n_contexts: in the block.
        """
        del number
        return torch.arange(n_contexts)

    def of_all_ranks(self, block: Block) -> Block:
        """Return all contexts of a block, of which this process may have read a part, as far as the order of its rows depends on them.

        Args:
            block: the contexts that this process has read.

        Returns:
            Contexts with the same masked positions as those of the whole block, and activations of the same norms.
        """
        return block

    def own_rows(self, number: int, rows: Int[Tensor, " row"], n_positions: int) -> Int[Tensor, " own_row"]:
        """Select the flat positions of a block that are in the contexts that this process has read, counted from the first of these."""
        del number, n_positions
        return rows

    def generator(self, block: int) -> torch.Generator:
        """The randomness of one block."""
        return torch.Generator().manual_seed(random.Random(f"{self.seed} {block}").getrandbits(32))

    def sequences(self, first_step: int = 0) -> Iterator[Float[Tensor, "rows d_in"]]:
        """Iterate over batches of `batch_size_sequences` contexts laid end to end.

        SAELens takes them as plain tensors, in which a row of exact zeros is a wall. So masked rows are set to zero here.
        """
        first_block, skip = divmod(first_step, self.block_size_batches)
        with closing(self.blocks(first_block)) as blocks:
            for block in blocks:
                for contexts in self.context_order(block.number, len(block.h)).split(self.batch_size_sequences)[skip:]:
                    places = contexts.to(block.h.device)
                    yield rearrange(zero_rows(block.h[places], block.masked[places]), "batch pos d_in -> (batch pos) d_in")
                skip = 0
                del block  # let go of it before the next one is read

    def mixed(
        self,
        first_step: int = 0,
        gather: Gather = gather_tokens,
        max_norm_multiple: float | None = None,
        widths: Sequence[int] = (),
    ) -> Iterator[Float[Tensor, "rows width"]]:
        """Iterate over batches of rows of the same blocks, mixed across contexts.

        A batch is a little smaller than `batch_size_sequences` contexts, by the rows that are left out: masked positions, and massive ones
        (`mtsae_lens.data.massive`). Other rows may still read a massive position.

        Args:
            first_step: the step of the first batch.
            gather: makes rows of positions; the default takes their activations alone, as a pointwise SAE reads them.
            max_norm_multiple: leave out positions whose norm is more than this many times the median of their block; None keeps all.
            widths: of each hook where the activations of several stand side by side. A position is left out if it is massive at any of them.
                By default there is one.

        Yields:
            Rows `(row, width)`.

        Raises:
            DataError: a block has fewer unmasked rows than batches.
        """
        first_block, skip = divmod(first_step, self.block_size_batches)
        with closing(self.blocks(first_block)) as blocks:
            for block in blocks:
                of_all = self.of_all_ranks(block)
                rows = self._mixed_rows(of_all, max_norm_multiple, widths)
                gather_rows = gather(block.h, block.masked)
                for batch in rows.tensor_split(len(of_all.h) // self.batch_size_sequences)[skip:]:
                    yield gather_rows(self.own_rows(block.number, batch, block.h.shape[1]))
                skip = 0
                del block, of_all, gather_rows  # let go of the block before the next one is read

    def _mixed_rows(self, block: Block, max_norm_multiple: float | None, widths: Sequence[int]) -> Int[Tensor, " row"]:
        """Return the flat positions of the rows of a block that are trained on, in their order. The block itself is not copied."""
        h, n_positions, n_batches = block.h, block.h.shape[1], len(block.h) // self.batch_size_sequences
        contexts = self.context_order(block.number, len(h)).to(h.device)
        kept = (~block.masked[contexts]).flatten().nonzero().squeeze(-1)
        if len(kept) < n_batches:
            raise DataError(
                f"expected activations at {h.shape[0] * h.shape[1]:,} positions, got {len(kept)} that are not masked; give text that holds "
                "more than special tokens"
            )
        if max_norm_multiple is not None:
            hooks = h.split(list(widths), dim=-1) if widths else (h,)
            found = torch.stack([find_massive(part, block.masked, max_norm_multiple) for part in hooks]).any(dim=0)
            massive = found[contexts].flatten()[kept]
            if massive.any():
                tell_once(
                    f"training leaves out positions whose activations are over {max_norm_multiple:g} times as long as the median "
                    f"(attention sinks): {int(massive.sum()):,} of the first {len(kept):,}. max_norm_multiple: null keeps them",
                    about="massive activations",
                )
            kept = kept[~massive]
        mixed = kept[torch.randperm(kept.shape[0], generator=self.generator(block.number)).to(kept.device)]
        return contexts[mixed // n_positions] * n_positions + mixed % n_positions


@dataclass(frozen=True, eq=False)
class StoredBlocks(SequenceBlocks):
    """Contexts that are in memory already, epoch after epoch, each in its own order: for many trainings on one set."""

    h: Float[Tensor, "n pos d_in"]
    """The activations; those at masked positions are not used."""
    masked: Bool[Tensor, "n pos"] = field(kw_only=True)
    """The positions that are not trained on and that no other position reads, such as special tokens and position 0."""
    batch_size_sequences: int
    block_size_batches: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.h.ndim != 3:
            raise DataError(f"contexts are (n, pos, d_in); got shape {tuple(self.h.shape)}")
        if not self.h.numel():
            raise DataError(f"expected at least one context of one position; got shape {tuple(self.h.shape)}")
        if not self.h.is_floating_point():
            raise DataError(
                f"expected real activations; got {self.h.dtype}: give them as float32 (h.float(), of complex ones h.real)"
            )
        if self.masked.shape != self.h.shape[:2] or self.masked.dtype != torch.bool:
            raise DataError(
                f"expected masked of shape {tuple(self.h.shape[:2])} and dtype torch.bool, got {tuple(self.masked.shape)} and "
                f"{self.masked.dtype}; give one truth value for each position of h"
            )

    def blocks(self, first: int) -> Generator[Block, None, None]:
        """Yield blocks that go on over the end of an epoch."""
        n_sequences = self.batch_size_sequences * self.block_size_batches
        number = first
        while True:
            places = torch.arange(number * n_sequences, (number + 1) * n_sequences)
            epochs = places // len(self.h)
            orders = {int(e): torch.randperm(len(self.h), generator=self.generator(-1 - int(e))) for e in epochs.unique()}
            rows = torch.stack([orders[int(e)][place] for e, place in zip(epochs, places % len(self.h), strict=True)])
            yield Block(number, self.h[rows].detach(), self.masked[rows.to(self.masked.device)].to(self.h.device))
            number += 1
