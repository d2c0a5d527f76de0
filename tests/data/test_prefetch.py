"""Blocks that a thread reads ahead: the same ones, one ahead and no more, and nothing is left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator

import pytest
import torch

from mtsae_lens.data.blocks import Block
from mtsae_lens.data.prefetch import Waits, prefetched, taking_turns
from mtsae_lens.interruption import ComputationStopped, raise_if_stopped


def make_block(number: int) -> Block:
    return Block(number, torch.full((1, 2, 1), float(number)), torch.tensor([[True, False]]))


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read activations"]


class Reading:
    """Blocks 0, 1, ..., and how many were begun."""

    def __init__(self, n_blocks: int, fails_at: int | None = None) -> None:
        self.n_blocks, self.fails_at = n_blocks, fails_at
        self.begun, self.closed = 0, False
        self.threads = set[str]()

    def blocks(self) -> Generator[Block]:
        try:
            for number in range(self.n_blocks):
                self.begun += 1
                self.threads.add(threading.current_thread().name)
                if number == self.fails_at:
                    raise ValueError("the text is broken")
                yield make_block(number)
        finally:
            self.closed = True


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_the_blocks_are_the_same_and_read_elsewhere() -> None:
    reading = Reading(5)
    got = list(prefetched(reading.blocks(), Waits()))
    expected = list(taking_turns(Reading(5).blocks(), Waits()))
    assert [block.number for block in got] == [block.number for block in expected] == list(range(5))
    assert all(torch.equal(one.h, other.h) for one, other in zip(got, expected, strict=True))
    assert all(torch.equal(one.masked, other.masked) for one, other in zip(got, expected, strict=True))
    assert reading.threads == {"read activations"}
    assert reading.closed
    assert not readers()


def test_one_block_is_read_ahead_and_no_more() -> None:
    reading = Reading(9)
    blocks = prefetched(reading.blocks(), Waits())
    for number in range(3):
        assert next(blocks).number == number
        wait_until(lambda number=number: reading.begun == number + 2)
        time.sleep(0.02)
        assert reading.begun == number + 2
    blocks.close()


def test_an_exception_crosses_over_after_what_was_read_before_it() -> None:
    reading = Reading(5, fails_at=2)
    blocks = prefetched(reading.blocks(), Waits())
    assert [next(blocks).number for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="the text is broken"):
        next(blocks)
    assert not readers()


@pytest.mark.parametrize("n_taken", [0, 1, 2])
def test_a_consumer_that_stops_ends_the_thread(n_taken: int) -> None:
    reading = Reading(9)
    blocks = prefetched(reading.blocks(), Waits())
    for _ in range(n_taken):
        next(blocks)
    blocks.close()
    assert not readers()
    assert reading.closed or not n_taken  # without a first block nothing was begun


def test_a_long_block_is_left_when_nobody_wants_it() -> None:
    begun, left = threading.Event(), list[str]()

    def long() -> Generator[Block]:
        yield make_block(0)
        begun.set()
        try:
            while True:
                raise_if_stopped()
                time.sleep(0.001)
        except ComputationStopped:
            left.append("left")
            raise

    blocks = prefetched(long(), Waits())
    next(blocks)
    assert begun.wait(20)
    blocks.close()
    assert left == ["left"]
    assert not readers()
    raise_if_stopped()  # this thread goes on


@pytest.mark.parametrize("ahead", [False, True])
def test_the_wait_of_each_side_is_measured(ahead: bool) -> None:
    way = prefetched if ahead else taking_turns

    def slow() -> Generator[Block]:
        for number in range(4):
            time.sleep(0.03)
            yield make_block(number)

    waits = Waits()
    list(way(slow(), waits))
    assert waits.for_activations > 0.1
    assert waits.for_sae < 0.06
    waits = Waits()
    for _ in way(Reading(4).blocks(), waits):
        time.sleep(0.03)
    assert waits.for_sae > 0.05
    assert waits.for_activations < 0.06
