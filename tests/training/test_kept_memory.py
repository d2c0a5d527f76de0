"""Memory that training frees is there for the next step, without a question to the system."""

from __future__ import annotations

import resource
import sys

import pytest
import torch

from mtsae_lens.training import kept_memory
from mtsae_lens.training.kept_memory import keeping_freed_memory

MEGABYTES = 2**18  # numbers in float32 that fill one


def page_faults_of_a_step() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(24 * MEGABYTES) for _ in range(4)]
    del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is on Linux")
def test_freed_memory_is_used_again_and_given_back_at_the_end() -> None:
    with keeping_freed_memory():
        first, _, third = (page_faults_of_a_step() for _ in range(3))
        assert third < first / 10
    assert page_faults_of_a_step() > first / 10


def test_nothing_is_changed_where_there_is_no_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_memory, "_find", lambda name: None)
    with keeping_freed_memory():
        assert torch.ones(3).sum() == 3
