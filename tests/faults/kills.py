"""Kill processes and fill disks: no damaged file may be left in place, and the resumed work must give the same result."""

from __future__ import annotations

import os
import random
import resource
import signal
from functools import partial
from pathlib import Path

from faults.findings import Finding, of_command
from faults.forks import Child
from faults.jobs import JOBS, OUT, Job, run, undisturbed
from faults.operations import BEFORE, FULL, HALFWAY, FaultPoint
from faults.runner import Family
from faults.workplace import Workplace, contents, differences

_MOST_KILLS = 3
_LIMITS = [2**power for power in range(16, 22)]  # bytes of a file; what is printed goes to files too, and must have room


def kill(workplace: Workplace, rng: random.Random, folder: Path, *, job: Job) -> Finding:
    """Kill the job at file operations, one to three times, and let it go on to its end."""
    expected = undisturbed(job, workplace)
    points = [
        FaultPoint(rng.randrange(len(expected.operations)), rng.choice((BEFORE, HALFWAY)))
        for _ in range(rng.randint(1, _MOST_KILLS))
    ]
    what, n_kills = f"{job.name}, killed {', then '.join(map(str, points))}", 0
    for number, point in enumerate(points):
        ended = run(job, workplace, folder, point, again=number > 0)
        if ended.signal_number == signal.SIGKILL and not ended.timed_out:
            n_kills += 1
        elif ended.code != 0:
            outcome, detail = of_command(ended)
            return Finding("not resumed" if outcome == "refused" else outcome, what, detail, n_kills)
        damaged = _damaged(job, folder, expected.contents)
        if damaged:
            return Finding("torn", what, damaged, n_kills)
    return _finish(job, workplace, folder, what, n_kills)


def fill_disk(workplace: Workplace, rng: random.Random, folder: Path, *, job: Job) -> Finding:
    """Fill the disk at a file operation, or limit the size of files; then make room and let the job go on."""
    expected = undisturbed(job, workplace)
    if rng.random() < 0.75:
        point = FaultPoint(rng.randrange(len(expected.operations)), FULL)
        what = f"{job.name}, disk full from file operation {point.number} on"
        ended = run(job, workplace, folder, point)
    else:
        limit = rng.choice(_LIMITS)
        what = f"{job.name}, files of at most {limit:,} bytes"
        ended = Child(partial(_limited, limit, job, workplace), folder, job.name).wait(100)
    outcome, detail = of_command(ended)
    if outcome not in ("refused", "done"):
        return Finding(outcome, what, detail)
    damaged = _damaged(job, folder, expected.contents)
    if damaged:
        return Finding("torn", what, damaged)
    return _finish(job, workplace, folder, what, 1)


def _limited(limit: int, job: Job, workplace: Workplace) -> None:
    os.environ["TQDM_DISABLE"] = "1"
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    job.call(workplace)()


def _damaged(job: Job, folder: Path, expected: dict[str, object]) -> str:
    """Files that are in place and not what they end as; files of the run itself, which grow, are left out."""
    found = contents(folder / OUT)
    return differences({name: value for name, value in found.items() if _final(job, name) and name in expected},
                       {name: value for name, value in expected.items() if _final(job, name) and name in found})  # fmt: skip


def _final(job: Job, name: str) -> bool:
    return Path(name).parts[0] not in job.growing


def _finish(job: Job, workplace: Workplace, folder: Path, what: str, n_faults: int) -> Finding:
    ended = run(job, workplace, folder, again=True)
    outcome, detail = of_command(ended)
    if outcome != "done":
        return Finding("not resumed" if outcome == "refused" else outcome, what, detail, n_faults)
    differ = differences(contents(folder / OUT), undisturbed(job, workplace).contents)
    if differ:
        return Finding("left over" if differ.startswith("left over") else "different", what, differ, n_faults)
    return Finding("equal", what, n_faults=n_faults)


def _family(name: str, count: int, quick: int) -> Family:
    job = JOBS[name]
    return Family(
        name=f"kill/{name}",
        promise="A command that is killed at any moment reaches the same result when it runs again (a training with `--resume`).",
        method="SIGKILL before or halfway through random file operations, one to three times in a run; every file is compared",
        trial=partial(kill, job=job),
        count=count,
        quick=quick,
        prepare=partial(undisturbed, job),
        seconds=300,
    )


def _full_family(name: str, count: int, quick: int) -> Family:
    job = JOBS[name]
    return Family(
        name=f"disk/{name}",
        promise="A command on a full disk ends with an error of one line and leaves no partial file. With space it reaches the same result.",
        method="ENOSPC from a random file operation on, or a limit on the size of files; then the same command without the fault",
        trial=partial(fill_disk, job=job),
        count=count,
        quick=quick,
        prepare=partial(undisturbed, job),
        seconds=300,
    )


FAMILIES = [
    _family("train", 200, 2),
    _family("explore", 150, 1),
    _family("grid", 100, 3),
    _family("unlearn", 40, 1),
    _family("export", 40, 0),
    _family("planted", 12, 0),
    _family("demo", 6, 0),
    _full_family("train", 60, 1),
    _full_family("explore", 60, 1),
    _full_family("grid", 60, 2),
    _full_family("unlearn", 30, 0),
    _full_family("export", 30, 0),
]
