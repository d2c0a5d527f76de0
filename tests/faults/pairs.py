"""Run two processes on one folder: one may be refused, and the result must be that of one alone."""

from __future__ import annotations

import json
import random
import time
from functools import partial
from pathlib import Path

from faults.findings import Finding, of_command
from faults.forks import Child
from faults.jobs import JOBS, OUT, Job, run, start, undisturbed
from faults.runner import Family
from faults.workplace import Workplace, contents, differences
from mtsae_lens.errors import OutputError
from mtsae_lens.files import write_json

_LATEST = 1.5  # seconds by which the second process begins later
_N_WRITES = 40


def two_jobs(workplace: Workplace, rng: random.Random, folder: Path, *, job: Job) -> Finding:
    """Start the same job twice on one folder."""
    delay = rng.choice((0.0, rng.uniform(0, 0.2), rng.uniform(0, _LATEST)))
    what = f"two of {job.name} on one --out, the second {delay:.2f} s later"
    first = start(job, workplace, folder)
    time.sleep(delay)
    second = Child(job.call(workplace, again=True), folder, "second")
    outcomes = [of_command(child.wait(100)) for child in (first, second)]
    for outcome, detail in outcomes:
        if outcome not in ("done", "refused"):
            return Finding(outcome, what, detail)
    if all(outcome == "refused" for outcome, _ in outcomes):
        return Finding("nobody", what, " | ".join(detail for _, detail in outcomes))
    differ = differences(contents(folder / OUT), undisturbed(job, workplace).contents)
    if differ:
        return Finding("different", what, differ)
    outcome, detail = of_command(run(job, workplace, folder, again=True))  # nothing may stay locked
    if outcome == "refused" and "in use" in detail:
        return Finding("not resumed", what, detail)
    return Finding("equal", what)


def two_writers(workplace: Workplace, rng: random.Random, folder: Path) -> Finding:
    """Two processes write one file again and again, and each reads what it finds there."""
    path, sizes = folder / "file.json", [rng.randrange(1, 40_000) for _ in range(2)]
    what = f"two processes write one file {_N_WRITES} times each, {sizes[0]:,} and {sizes[1]:,} numbers"
    allowed = [list(range(size)) for size in sizes]
    children = [
        Child(partial(_write_and_read, path, content, allowed), folder, f"writer{size}") for size, content in enumerate(allowed)
    ]
    for child in children:
        ended = child.wait(60)
        if ended.code != 0:
            lines = ended.err.strip().splitlines() or [""]
            return Finding("torn" if "torn" in lines[-1] else "traceback", what, lines[-1][:200])
    return Finding("equal", what)


def _write_and_read(path: Path, content: list[int], allowed: list[list[int]]) -> None:
    for _ in range(_N_WRITES):
        try:
            write_json(path, content)
        except OutputError as error:
            raise SystemExit(f"torn: needlessly refused: {error}") from error
        try:
            read = json.loads(path.read_text())
        except ValueError as error:
            raise SystemExit(f"torn: {error}") from error
        if read not in allowed:
            raise SystemExit("torn: neither of the two contents")


_PROMISE = "If two processes use one folder, each finishes or is refused in one line. The folder is the same as after one process alone."


def _family(name: str, count: int, quick: int) -> Family:
    job = JOBS[name]
    return Family(
        name=f"pair/{name}",
        promise=_PROMISE,
        method=f"the same command twice, the second up to {_LATEST:g} s later; every file is compared",
        trial=partial(two_jobs, job=job),
        count=count,
        quick=quick,
        prepare=partial(undisturbed, job),
        seconds=240,
    )


FAMILIES = [
    _family("train", 40, 1),
    _family("explore", 40, 1),
    _family("grid", 40, 2),
    _family("unlearn", 20, 0),
    _family("export", 20, 0),
    Family(
        name="pair/writers",
        promise="A reader finds the old file or the new one, never a mixture.",
        method=f"two processes write one file {_N_WRITES} times each, and read it after every write",
        trial=two_writers,
        count=20,
        quick=1,
    ),
]
