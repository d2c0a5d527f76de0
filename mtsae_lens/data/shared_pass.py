"""One pass over a text that several SAEs read: each block is read once, and each SAE has its own order in it and its own hook."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from typing_extensions import override

from mtsae_lens.data.blocks import Block, SequenceBlocks
from mtsae_lens.data.context_blocks import ContextBlocks
from mtsae_lens.data.prefetch import Waits


class SharedPass:
    """The blocks of a source, each read when the first reader asks for it and let go when the last one has had it.

    Args:
        source: the blocks, with the activations of several hooks side by side.
        n_readers: how many read them, each every block from the first on.
    """

    def __init__(self, source: ContextBlocks, n_readers: int) -> None:
        self.source = source
        self._waiting: list[deque[Block]] = [deque() for _ in range(n_readers)]
        self._blocks: Generator[Block, None, None] | None = None

    def begin(self, first_block: int) -> None:
        """Begin to read at a block, the first that any reader needs."""
        self.close()
        self._blocks = self.source.blocks(first_block)

    def close(self) -> None:
        """Stop reading."""
        if self._blocks is not None:
            self._blocks.close()
        self._blocks = None
        for queue in self._waiting:
            queue.clear()

    def blocks(self, reader: int, first: int) -> Generator[Block, None, None]:
        """Yield the blocks from one on to a reader; those before are passed over."""
        assert self._blocks is not None, "begin first"
        queue = self._waiting[reader]
        while True:
            if not queue:
                block = next(self._blocks, None)
                if block is None:
                    return
                for other in self._waiting:
                    other.append(block)
                del block
            if queue[0].number >= first:
                yield queue.popleft()
            else:
                queue.popleft()


@dataclass(frozen=True, eq=False)
class SharedBlocks(SequenceBlocks):
    """What one SAE reads of a shared pass: the blocks, in the order of its own seed."""

    shared: SharedPass
    reader: int
    """The place of this SAE among the readers."""
    columns: tuple[slice, ...]
    """The activations of its hook, or of each of its hooks in their order."""
    batch_size_sequences: int
    block_size_batches: int
    seed: int

    @property
    def waits(self) -> Waits:
        """How long the pass and the SAEs have waited for each other."""
        return self.shared.source.waits

    @override
    def context_order(self, number: int, n_contexts: int) -> Int[Tensor, " context"]:
        return torch.randperm(n_contexts, generator=self.generator(number))

    @override
    def blocks(self, first: int) -> Generator[Block, None, None]:
        for block in self.shared.blocks(self.reader, first):
            parts = [block.h[..., columns] for columns in self.columns]
            yield Block(block.number, parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1), block.masked)
            del block, parts  # let go of it before the next one is read
