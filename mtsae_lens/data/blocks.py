"""Training batches from blocks of whole sequences, in an order that can be entered at any step.

A source yields numbered blocks of contexts. What step s sees depends on the source, the seed and s alone, so a resumed run needs no
saved buffer. Masked positions are rows of zeros: walls to a temporal SAE, dropped for an SAE that reads one token at a time.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtsae_lens.data.masks import find_masked
from mtsae_lens.data.massive import massive_positions, norm_limit
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


class SequenceBlocks(ABC):
    """An endless stream of training batches; see the module for its order.

    `batch_size_sequences` contexts make a batch and `block_size_batches` batches a block, which is what is in memory at once:
    `block_size_batches * batch_size_sequences * context_size * d_in` numbers.
    """

    batch_size_sequences: int
    block_size_batches: int
    seed: int

    @abstractmethod
    def blocks(self, first: int) -> Generator[tuple[int, Float[Tensor, "batch pos d_in"]], None, None]:
        """Yield number and contexts of every block from `first` on, masked positions zero."""

    def context_order(self, number: int, n_contexts: int) -> Int[Tensor, " context"]:
        """Return the order in which training reads the contexts of a block; here, the order that they are in.

        Args:
            number: of the block.
            n_contexts: in the block.
        """
        del number
        return torch.arange(n_contexts)

    def of_all_ranks(self, number: int, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "all_batch pos width"]:
        """Return the contexts of a block, of which this process may have read a part: all that the order of its rows depends on.

        Args:
            number: of the block.
            h: the contexts that this process has read.

        Returns:
            Contexts whose positions are zero where those of the block are, and as long.
        """
        del number
        return h

    def own_rows(self, number: int, rows: Int[Tensor, " row"], n_positions: int) -> Int[Tensor, " own_row"]:
        """Select the flat positions of a block that are in the contexts that this process has read, counted from the first of these."""
        del number, n_positions
        return rows

    def generator(self, block: int) -> torch.Generator:
        """The randomness of one block."""
        return torch.Generator().manual_seed(random.Random(f"{self.seed} {block}").getrandbits(32))

    def sequences(self, first_step: int = 0) -> Iterator[Float[Tensor, "rows d_in"]]:
        """Batches of `batch_size_sequences` contexts laid end to end, masked rows zero."""
        block, skip = divmod(first_step, self.block_size_batches)
        with closing(self.blocks(block)) as blocks:
            for number, h in blocks:
                for contexts in self.context_order(number, len(h)).split(self.batch_size_sequences)[skip:]:
                    yield rearrange(h[contexts.to(h.device)], "batch pos d_in -> (batch pos) d_in")
                skip = 0
                del h  # let go of the block before the next one is read

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
            widths: of each hook where the activations of several stand side by side. A position is left out if it is masked or massive at any
                of them. By default there is one.

        Yields:
            Rows `(row, width)`.

        Raises:
            DataError: a block has fewer unmasked rows than batches.
        """
        block, skip = divmod(first_step, self.block_size_batches)
        with closing(self.blocks(block)) as blocks:
            for number, h in blocks:
                masked = find_masked(h)
                of_all = self.of_all_ranks(number, h)
                masked_of_all = masked if of_all is h and not widths else _masked_at_any(of_all, widths)
                rows = self._mixed_rows(number, of_all, masked_of_all, max_norm_multiple, widths)
                gather_rows = gather(h, masked)
                for batch in rows.tensor_split(len(of_all) // self.batch_size_sequences)[skip:]:
                    yield gather_rows(self.own_rows(number, batch, h.shape[1]))
                skip = 0
                del h, of_all, gather_rows  # let go of the block before the next one is read

    def _mixed_rows(
        self,
        number: int,
        h: Float[Tensor, "batch pos width"],
        masked: Bool[Tensor, "batch pos"],
        max_norm_multiple: float | None,
        widths: Sequence[int],
    ) -> Int[Tensor, " row"]:
        """Return the flat positions of the rows of a block that are trained on, in their order. The block itself is not copied."""
        n_positions, n_batches = h.shape[1], len(h) // self.batch_size_sequences
        contexts = self.context_order(number, len(h)).to(h.device)
        kept = (~masked[contexts]).flatten().nonzero().squeeze(-1)
        if len(kept) < n_batches:
            raise DataError(
                f"expected activations at {h.shape[0] * h.shape[1]:,} positions, got {len(kept)} that are not masked or exactly zero; give "
                "text that holds more than special tokens, and a hook whose activations are not zero"
            )
        if max_norm_multiple is not None:
            hooks = _split_hooks(h, widths)
            long = torch.stack([massive_positions(part, norm_limit(part, max_norm_multiple)) for part in hooks]).any(dim=0)
            massive = long[contexts].flatten()[kept]
            if massive.any():
                tell_once(
                    f"training leaves out positions whose activations are over {max_norm_multiple:g} times as long as the median "
                    f"(attention sinks): {int(massive.sum()):,} of the first {len(kept):,}. max_norm_multiple: null keeps them",
                    about="massive activations",
                )
            kept = kept[~massive]
        mixed = kept[torch.randperm(kept.shape[0], generator=self.generator(number)).to(kept.device)]
        return contexts[mixed // n_positions] * n_positions + mixed % n_positions


def _split_hooks(h: Float[Tensor, "batch pos width"], widths: Sequence[int]) -> Sequence[Tensor]:
    return h.split(list(widths), dim=-1) if widths else (h,)


def _masked_at_any(h: Float[Tensor, "batch pos width"], widths: Sequence[int]) -> Bool[Tensor, "batch pos"]:
    return torch.stack([find_masked(part) for part in _split_hooks(h, widths)]).any(dim=0)


@dataclass(frozen=True, eq=False)
class StoredBlocks(SequenceBlocks):
    """Contexts that are in memory already, epoch after epoch, each in its own order: for many trainings on one set."""

    h: Float[Tensor, "n pos d_in"]
    """Masked positions zero."""
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

    def blocks(self, first: int) -> Generator[tuple[int, Float[Tensor, "batch pos d_in"]], None, None]:
        """Blocks that go on over the end of an epoch."""
        n_sequences = self.batch_size_sequences * self.block_size_batches
        number = first
        while True:
            places = torch.arange(number * n_sequences, (number + 1) * n_sequences)
            epochs = places // len(self.h)
            orders = {int(e): torch.randperm(len(self.h), generator=self.generator(-1 - int(e))) for e in epochs.unique()}
            rows = torch.stack([orders[int(e)][place] for e, place in zip(epochs, places % len(self.h), strict=True)])
            yield number, self.h[rows].detach()
            number += 1
