"""Test that a command keeps freed memory, in processes that do nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mtsae_lens.cli.allocation import keep_freed_memory

# Each round makes 128 MB of tensors and frees them. Pages that the allocator kept cause no fault when they are used again.
_COUNT_FAULTS = """
import resource, torch
{first}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(2**21) for _ in range(16)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(sum(faults() for _ in range(5)))
"""


def _faults(first: str) -> int:
    environment = {"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _COUNT_FAULTS.format(first=first)]
    return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator of the GNU C library is tuned")
def test_freed_memory_is_used_again() -> None:
    kept = _faults("from mtsae_lens.cli.allocation import keep_freed_memory\nassert keep_freed_memory()")
    assert kept < 16_000  # of 163,840 pages of 4 kB
    assert _faults("") > 4 * kept


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_the_environment_is_left_in_charge(name: str) -> None:
    assert not keep_freed_memory({"PATH": "/bin", name: "1"})
