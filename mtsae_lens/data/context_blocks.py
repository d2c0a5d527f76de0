"""Blocks of activations that are read in the order of the text: from a language model, a cache, or a pass that several SAEs share.

Block i holds the contexts i * n, ..., (i + 1) * n - 1 of the source, whoever reads it, and training shuffles each block by its own seed. So
what a step sees depends on the source, the seed and the number of the step alone.

Several ranks (`mtsae_lens.ranks`) read a part of each block each. They tell each other how long the activations of every position are, shuffle
the positions of the whole block alike, and each takes from a batch the rows that are in its own part. So the rows that all ranks together see
in a step are those that one process sees.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from typing_extensions import override

from mtsae_lens.data.blocks import Block, SequenceBlocks
from mtsae_lens.data.prefetch import Waits, prefetched, taking_turns
from mtsae_lens.errors import DataError
from mtsae_lens.ranks import current_ranks

Chunk = tuple[Float[Tensor, "_ pos width"], Bool[Tensor, "_ pos"]]
"""Some contexts of a source: their activations, and which of their positions are masked."""


class ContextBlocks(SequenceBlocks):
    """Blocks that are put together from the chunks of a source; each in another order, drawn from the seed."""

    n_batches: int | None
    """Batches in the whole run; the last block holds no more than these need. None for an endless stream."""
    prefetch: bool
    """Whether a thread reads the next block while this one is used. Two blocks are in memory then."""
    read_already: list[Block]
    """The first block, where somebody has read it; it is let go when it is used."""
    waits: Waits
    """How long reader and trainer have waited for each other."""

    @abstractmethod
    def chunks(self, first_block: int) -> Iterator[Chunk]:
        """Yield this rank's contexts (`own_contexts`) in the order of the source, some at once.

        Args:
            first_block: the number of the block to begin with.
        """

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the blocks are."""

    def own_contexts(self, number: int) -> range:
        """Return the numbers of the contexts of a block that this rank reads; those of the whole block if it is alone."""
        first = number * self.block_size_batches * self.batch_size_sequences
        share = current_ranks().share(self._block_size(number))
        return range(first + share.start, first + share.stop)

    @override
    def of_all_ranks(self, block: Block) -> Block:
        ranks = current_ranks()
        if ranks.is_alone:
            return block
        norms = block.h.norm(dim=-1)
        both = ranks.concatenate(torch.stack([norms, block.masked.to(norms)], dim=-1), self._block_size(block.number))
        return Block(block.number, both[..., :1], both[..., 1] == 1)

    @override
    def own_rows(self, number: int, rows: Int[Tensor, " row"], n_positions: int) -> Int[Tensor, " own_row"]:
        ranks = current_ranks()
        if ranks.is_alone:
            return rows
        share = ranks.share(self._block_size(number))
        first, end = share.start * n_positions, share.stop * n_positions
        own = rows[(rows >= first) & (rows < end)] - first
        if not len(own):
            raise DataError(
                f"expected rows for each of {ranks.size} ranks in a batch, got {len(rows)} rows and none for rank {ranks.rank}; give a larger "
                "--batch-size-tokens or fewer ranks"
            )
        return own

    @override
    def context_order(self, number: int, n_contexts: int) -> Int[Tensor, " context"]:
        return torch.randperm(n_contexts, generator=self.generator(number))

    @override
    def blocks(self, first: int) -> Generator[Block, None, None]:
        """See `SequenceBlocks.blocks`.

        Raises:
            ComputationStopped: a signal asked to stop while a block was read.
        """
        if self.prefetch:
            return prefetched(self._read_blocks(first, shows_progress=False), self.waits, self.device)
        return taking_turns(self._read_blocks(first, shows_progress=True), self.waits)

    def _read_blocks(self, first: int, *, shows_progress: bool) -> Generator[Block, None, None]:
        number = first
        if number == 0 and self.read_already:
            yield self.read_already.pop()
            number += 1
        if not self.own_contexts(number):
            return
        chunks = self.chunks(number)
        rest: list[Chunk] = []  # of a chunk that reaches into the next block
        while size := len(self.own_contexts(number)):
            # shown only where it takes long
            with tqdm(
                total=size, desc="Reading activations", unit="context", leave=False, delay=1, disable=not shows_progress or None
            ) as progress:
                h, masked = self._fill(size, chunks, rest, progress)
            yield Block(number, h, masked)
            del h, masked
            number += 1

    def _fill(self, size: int, chunks: Iterator[Chunk], rest: list[Chunk], progress: tqdm) -> Chunk:  # type: ignore[type-arg]
        """Put the contexts of a block together from what is left of the last chunk and from new chunks."""
        whole: Chunk | None = None
        n = 0
        while n < size:
            h, masked = rest.pop() if rest else next(chunks)
            n_taken = min(len(h), size - n)
            if n_taken < len(h):
                rest.append((h[n_taken:], masked[n_taken:]))
            if whole is None:
                whole = self._make_room(size, h)
            place = slice(n, n + n_taken)
            whole[0][place], whole[1][place] = h[:n_taken], masked[:n_taken]
            n += n_taken
            progress.update(n_taken)
        assert whole is not None
        return whole[0].to(self.device, non_blocking=True), whole[1].to(self.device, non_blocking=True)

    def _make_room(self, size: int, like: Float[Tensor, "_ pos width"]) -> Chunk:
        """Return tensors that `size` contexts fit into, in pinned memory if they will go from the CPU to a GPU."""
        pinned = self.device.type == "cuda" and not like.is_cuda
        return (
            torch.empty((size, *like.shape[1:]), dtype=torch.float32, device=like.device, pin_memory=pinned),
            torch.empty((size, like.shape[1]), dtype=torch.bool, device=like.device, pin_memory=pinned),
        )

    def _block_size(self, number: int) -> int:
        """Return the number of contexts in a block; 0 after the end of the run."""
        n_batches = self.block_size_batches
        if self.n_batches is not None:
            n_batches = min(n_batches, max(0, self.n_batches - number * self.block_size_batches))
        return n_batches * self.batch_size_sequences
