"""Run families of trials. Each trial depends on the seed, the family's name and its number, and runs in its own process or in a shared one."""

from __future__ import annotations

import json
import random
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm.auto import tqdm

from faults.findings import Finding
from faults.forks import Child
from faults.workplace import Workplace

_RECORDS = "findings.jsonl"
_MORE_MEMORY = 3 * 2**30  # bytes

TrialFunction = Callable[[Workplace, random.Random, Path], Finding]


@dataclass(frozen=True)
class Family:
    """Trials of one kind.

    Args:
        name: `what/of`, such as `kill/train`.
        promise: what the trials test.
        method: how.
        trial: makes one, in an empty folder that it may fill.
        count: how many a long run makes.
        quick: how many a quick run makes.
        injects: whether a trial injects faults (else it gives bad input).
        prepare: makes what all trials read, before the first.
        seconds: that a trial may take.
        per_process: trials that share a process.
    """

    name: str
    promise: str
    method: str
    trial: TrialFunction
    count: int
    quick: int
    injects: bool = True
    prepare: Callable[[Workplace], object] = lambda workplace: None
    seconds: float = 120.0
    per_process: int = 1


@dataclass(frozen=True)
class Record:
    """A finding and what repeats it."""

    family: str
    trial: int
    seed: int
    finding: Finding


def run_family(family: Family, workplace: Workplace, seed: int, numbers: Iterable[int]) -> list[Record]:
    """Make these trials and return what they found, in their order."""
    family.prepare(workplace)
    left, records = list(numbers), []
    with tqdm(total=len(left), desc=family.name, unit="trial") as progress:
        while left:
            chunk = left[: family.per_process]
            found = _in_one_process(family, workplace, seed, chunk)
            records += [Record(family.name, number, seed, finding) for number, finding in zip(chunk, found, strict=False)]
            left = left[len(found) :]
            progress.update(len(found))
    return records


def _in_one_process(family: Family, workplace: Workplace, seed: int, numbers: list[int]) -> list[Finding]:
    """The findings of the trials that the process came to; the last one is of the trial that ended it, if one did."""
    scratch = Path(tempfile.mkdtemp(prefix="mtsae-faults-"))
    try:
        records = scratch / _RECORDS
        records.touch()
        (scratch / "trials").mkdir()
        ended = Child(lambda: _make(family, workplace, seed, numbers, records), scratch / "trials").wait(
            family.seconds * len(numbers) + 10
        )
        found = [Finding(**json.loads(line)) for line in records.read_text().splitlines()]
        if len(found) < len(numbers):
            how = "hang" if ended.timed_out else "died" if ended.signal_number else "traceback"
            last = ended.err.strip().splitlines()[-1:] or [""]
            found.append(Finding(how, "see the trial", f"signal {ended.signal_number}: {last[0][:300]}"))
        return found
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _limit_memory() -> None:
    """Let this process and its children grow by so much and no more: reading without end must not take the machine with it."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _MORE_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _make(family: Family, workplace: Workplace, seed: int, numbers: list[int], records: Path) -> None:
    _limit_memory()
    for number in numbers:
        folder = Path(str(number)).resolve()
        folder.mkdir()
        finding = family.trial(workplace, random.Random(f"{seed} {family.name} {number}"), folder)
        with records.open("a") as file:
            file.write(json.dumps(asdict(finding)) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
