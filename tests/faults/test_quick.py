"""Run the quick trials in a separate process, because a fork of a process full of other tests is not like a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from faults.families import FAMILIES
from faults.findings import BAD

TESTS = Path(__file__).parents[1]
QUICK = [family.name for family in FAMILIES if family.quick]


@pytest.fixture(scope="session")
def counts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `python -m faults --quick` counted."""
    out = tmp_path_factory.mktemp("faults")
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    command = [sys.executable, "-m", "faults", "--quick", "--out", str(out)]
    ended = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert (out / "faults.json").exists(), ended.stderr
    return json.loads((out / "faults.json").read_text())


@pytest.mark.parametrize("name", QUICK)
def test_every_promise_is_kept(name: str, counts: dict[str, Any]) -> None:
    (row,) = (row for row in counts["families"] if row["family"] == name)
    assert row["trials"] > 0
    assert not row["failures"], [failed for failed in counts["failed"] if failed["family"] == name]


def test_every_family_says_what_it_promises() -> None:
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)
    for family in FAMILIES:
        assert family.promise.endswith(".")
        assert family.method


def test_the_long_part_is_long_enough() -> None:
    assert sum(family.count for family in FAMILIES if family.injects) >= 1_000
    assert sum(family.count for family in FAMILIES if not family.injects) >= 10_000


def test_what_breaks_a_promise_is_counted(tmp_path: Path) -> None:
    """The harness itself: each fault is seen by it."""
    from faults.findings import Finding, attempt
    from faults.forks import Child
    from faults.operations import BEFORE, FULL, HALFWAY, FaultPoint, Operations

    def write(point: FaultPoint | None) -> None:
        Operations(tmp_path, point).install()
        with open("a.txt", "w") as file:
            file.write("0123456789")
        Path("a.txt").replace("b.txt")

    folder = tmp_path / "work"
    folder.mkdir()
    endings = {}
    for action, number in ((BEFORE, 0), (HALFWAY, 1), (BEFORE, 2), (FULL, 1)):
        ended = Child(partial(write, FaultPoint(number, action)), folder).wait(20)
        content = (folder / "a.txt").read_text() if (folder / "a.txt").exists() else None
        endings[action, number] = (ended.signal_number, content, "No space left" in ended.err)
        for path in folder.iterdir():
            path.unlink()
    assert endings == {
        (BEFORE, 0): (9, None, False),
        (HALFWAY, 1): (9, "01234", False),
        (BEFORE, 2): (9, "0123456789", False),
        (FULL, 1): (None, "", True),
    }

    def loop() -> str:
        while True:
            pass

    assert attempt(loop, 0.05)[0] == "hang"
    assert attempt(lambda: str(1 / 0), 1)[0] == "traceback"
    assert not any(Finding(outcome, "").ok for outcome in BAD)
