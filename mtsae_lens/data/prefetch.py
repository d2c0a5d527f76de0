"""Read the next block of activations while the SAE trains on this one, and measure how long each side waits for the other.

The order and the values of what is read do not depend on it. An exception in the reading thread is raised where the items are consumed, and
a consumer that stops early ends the thread after the part that it is reading (`mtsae_lens.interruption.raise_if_stopped`).
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import copy_context
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event, Semaphore, Thread

import torch

from mtsae_lens.data.blocks import Block
from mtsae_lens.interruption import abandoned_by


@dataclass
class Waits:
    """Seconds that the two sides of training have waited for each other."""

    for_activations: float = 0.0
    """The SAE waited for the language model or the cache."""
    for_sae: float = 0.0
    """The language model or the cache waited for the SAE."""

    @contextmanager
    def waiting_for_activations(self) -> Iterator[None]:
        """Count the time of the block as the SAE's wait."""
        start = time.perf_counter()
        yield
        self.for_activations += time.perf_counter() - start

    @contextmanager
    def waiting_for_sae(self) -> Iterator[None]:
        """Count the time of the block as the reader's wait."""
        start = time.perf_counter()
        yield
        self.for_sae += time.perf_counter() - start


def taking_turns(blocks: Generator[Block, None, None], waits: Waits) -> Generator[Block, None, None]:
    """Yield blocks that are read when they are asked for: while one side works, the other waits.

    Args:
        blocks: what is read.
        waits: to add to.
    """
    while True:
        with waits.waiting_for_activations():
            block = next(blocks, None)
        if block is None:
            return
        with waits.waiting_for_sae():
            yield block
        del block  # let go of it before the next one is read


def prefetched(
    blocks: Generator[Block, None, None], waits: Waits, device: torch.device | None = None
) -> Generator[Block, None, None]:
    """Yield blocks that a thread reads one ahead, so that two are in memory: the one in use and the next.

    Args:
        blocks: what is read, in that thread alone.
        waits: to add to.
        device: where the blocks are; on a GPU the thread works in a separate stream.

    Raises:
        Exception: whatever reading raised.
    """
    ready: SimpleQueue[Block | BaseException | None] = SimpleQueue()
    free, abandoned = Semaphore(), Event()

    def read() -> None:
        try:
            with abandoned_by(abandoned), _own_stream(device) as stream:
                while True:
                    with waits.waiting_for_sae():
                        free.acquire()
                    if abandoned.is_set():
                        return
                    block = next(blocks, None)
                    if stream is not None:
                        stream.synchronize()
                    ready.put(block)
                    if block is None:
                        return
                    del block
        except BaseException as error:
            ready.put(error)
        finally:
            blocks.close()

    thread = Thread(target=copy_context().run, args=(read,), name="read activations", daemon=True)
    thread.start()
    try:
        while True:
            with waits.waiting_for_activations():
                block = ready.get()
            free.release()
            if block is None:
                return
            if isinstance(block, BaseException):
                raise block
            for tensor in (block.h, block.masked):
                if tensor.is_cuda:  # its memory belongs to the other stream, which must not reuse it too early
                    tensor.record_stream(torch.cuda.current_stream(tensor.device))
            yield block
            del block
    finally:
        abandoned.set()
        free.release()
        thread.join()


@contextmanager
def _own_stream(device: torch.device | None) -> Iterator[torch.cuda.Stream | None]:
    """Work in a stream of this thread's own, after what was begun before; on a CPU there are no streams."""
    stream = None
    working: AbstractContextManager[object] = nullcontext()
    if device is not None and device.type == "cuda":
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.default_stream(device))
        working = torch.cuda.stream(stream)
    with working:
        yield stream
