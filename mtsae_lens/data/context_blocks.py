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
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from typing_extensions import override

from mtsae_lens.data.blocks import SequenceBlocks
from mtsae_lens.data.masks import find_masked
from mtsae_lens.data.prefetch import Waits, prefetched, taking_turns
from mtsae_lens.errors import DataError
from mtsae_lens.ranks import current_ranks


class ContextBlocks(SequenceBlocks):
    """Blocks that are put together from the chunks of a source; each in another order, drawn from the seed."""

    n_batches: int | None
    """Batches in the whole run; the last block holds no more than these need. None for an endless stream."""
    prefetch: bool
    """Whether a thread reads the next block while this one is used. Two blocks are in memory then."""
    read_already: list[Float[Tensor, "batch pos d_in"]]
    """The first block, where somebody has read it; it is let go when it is used."""
    waits: Waits
    """How long reader and trainer have waited for each other."""

    @abstractmethod
    def chunks(self, first_block: int) -> Iterator[Float[Tensor, "batch pos d_in"]]:
        """Yield the activations of this rank's contexts (`own_contexts`), in the order of the source, some at once; masked positions zero.

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
    def of_all_ranks(self, number: int, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "all_batch pos width"]:
        ranks = current_ranks()
        if ranks.is_alone:
            return h
        tiny = torch.finfo(h.dtype).tiny  # of activations whose squares are too small for the dtype
        lengths = torch.where(find_masked(h), 0.0, h.norm(dim=-1).clamp(min=tiny))
        return ranks.concatenate(lengths.unsqueeze(-1), self._block_size(number))

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
    def blocks(self, first: int) -> Generator[tuple[int, Float[Tensor, "batch pos d_in"]], None, None]:
        """See `SequenceBlocks.blocks`.

        Raises:
            ComputationStopped: a signal asked to stop while a block was read.
        """
        if self.prefetch:
            return prefetched(self._read_blocks(first, shows_progress=False), self.waits, self.device)
        return taking_turns(self._read_blocks(first, shows_progress=True), self.waits)

    def _read_blocks(
        self, first: int, *, shows_progress: bool
    ) -> Generator[tuple[int, Float[Tensor, "batch pos d_in"]], None, None]:
        number = first
        if number == 0 and self.read_already:
            yield number, self.read_already.pop()
            number += 1
        if not self.own_contexts(number):
            return
        chunks = self.chunks(number)
        rest: list[Tensor] = []  # of a chunk that reaches into the next block
        while size := len(self.own_contexts(number)):
            # shown only where it takes long
            with tqdm(
                total=size, desc="Reading activations", unit="context", leave=False, delay=1, disable=not shows_progress or None
            ) as progress:
                block = self._fill(size, chunks, rest, progress)
            yield number, block
            del block
            number += 1

    def _fill(self, size: int, chunks: Iterator[Tensor], rest: list[Tensor], progress: tqdm) -> Tensor:  # type: ignore[type-arg]
        """Put a block together from what is left of the last chunk and from new chunks."""
        block, n = None, 0
        while n < size:
            chunk = rest.pop() if rest else next(chunks)
            taken, left = chunk[: size - n], chunk[size - n :]
            if len(left):
                rest.append(left)
            if block is None:
                shape = (size, *chunk.shape[1:])
                if self.device.type == "cuda" and not chunk.is_cuda:
                    block = torch.empty(shape, dtype=torch.float32, pin_memory=True)
                else:
                    block = chunk.new_empty(shape, dtype=torch.float32)
            block[n : n + len(taken)] = taken
            n += len(taken)
            progress.update(len(taken))
        assert block is not None
        return block.to(self.device, non_blocking=True)

    def _block_size(self, number: int) -> int:
        """Return the number of contexts in a block; 0 after the end of the run."""
        n_batches = self.block_size_batches
        if self.n_batches is not None:
            n_batches = min(n_batches, max(0, self.n_batches - number * self.block_size_batches))
        return n_batches * self.batch_size_sequences
