"""Define long jobs that may be interrupted: how they start, how they resume, and what they must produce."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mtsae_lens.exploration.explore as explore_module
from faults.forks import Child, Ended
from faults.operations import BEFORE, FaultPoint, Operations
from faults.workplace import Workplace, contents, run_command
from mtsae_lens.errors import MTSAEError
from mtsae_lens.trials import run_trials

OUT = "run"
_SECONDS = 100.0
_N_GRID_TRIALS = 12


@dataclass(frozen=True)
class Job:
    """A command that writes into the folder `run` of its working directory.

    Args:
        name: name of the job.
        growing: files and folders that change during the work; every other file is whole or absent.
        again: additional arguments to resume; empty if the same command resumes.
    """

    name: str
    growing: tuple[str, ...]
    again: tuple[str, ...] = ()

    def call(self, workplace: Workplace, *, again: bool = False) -> Callable[[], None]:
        """Run the job."""
        if self.name == "grid":
            return _run_grid
        return partial(_run_verb, workplace.arguments(self.name) + (self.again if again else ()))


@dataclass(frozen=True)
class Undisturbed:
    """The result of a job that is not disturbed."""

    contents: dict[str, Any]
    operations: tuple[str, ...]


JOBS = {
    job.name: job
    for job in (
        Job("train", ("training_log.jsonl", "checkpoints", ".sae"), ("--resume",)),
        Job("explore", ("state", "settings.json", "page")),
        Job("grid", ("settings.json",)),
        Job("unlearn", ()),
        Job("export", ()),
        Job("planted", ("planted", "directions")),
        Job("demo", ("mtsae", "topk", "explore")),
    )
}


def _run_verb(arguments: tuple[str, ...]) -> None:
    assert hasattr(explore_module, "_SAVE_EVERY_SECONDS")
    explore_module._SAVE_EVERY_SECONDS = 0  # so that there is state to lose
    run_command(arguments)


def _run_grid() -> None:
    trials = {f"toy/{number}": partial(_toy, number) for number in range(_N_GRID_TRIALS)}
    try:
        run_trials(Path(OUT), {"n": _N_GRID_TRIALS, "what": {"toy": True}}, trials, "toy")
    except MTSAEError as error:  # as the command line does
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _toy(number: int) -> dict[str, Any]:
    rng = random.Random(number)
    return {"value": rng.random(), "values": [rng.randrange(100) for _ in range(20)]}


def start(job: Job, workplace: Workplace, folder: Path, point: FaultPoint | None = None, *, again: bool = False) -> Child:
    """Start or resume a job in a separate process, with a fault at one point."""
    call = job.call(workplace, again=again)

    def disturbed() -> None:
        Operations(folder, point).install()
        call()

    return Child(call if point is None else disturbed, folder, job.name)


def run(job: Job, workplace: Workplace, folder: Path, point: FaultPoint | None = None, *, again: bool = False) -> Ended:
    """The same, and wait for its end."""
    return start(job, workplace, folder, point, again=again).wait(_SECONDS)


def undisturbed(job: Job, workplace: Workplace) -> Undisturbed:
    """The result of an undisturbed run and its file operations, made once."""
    kept = workplace.folder / f"undisturbed-{job.name}.json"
    if not kept.exists():
        folder = workplace.folder / f"job-{job.name}"
        folder.mkdir()
        call = job.call(workplace)

        def counted() -> None:
            operations = Operations(folder)
            operations.install()
            try:
                call()
            finally:
                (folder / "operations.json").write_text(json.dumps(operations.names))

        ended = Child(counted, folder).wait(3 * _SECONDS)
        if ended.code != 0:
            raise RuntimeError(f"{job.name} failed undisturbed: {ended.err}")
        names = json.loads((folder / "operations.json").read_text())
        kept.write_text(json.dumps({"contents": contents(folder / OUT), "operations": names}))
    read = json.loads(kept.read_text())
    return Undisturbed(read["contents"], tuple(read["operations"]))


def interrupt_job(job: Job, workplace: Workplace, before: str) -> Path:
    """Kill a job before the first file operation on a path that contains `before`, and return the folder that it leaves; done once."""
    folder = workplace.folder / f"interrupted-{job.name}"
    if not folder.exists():
        operations = undisturbed(job, workplace).operations
        number = next(number for number, name in enumerate(operations) if before in name)
        folder.mkdir()
        run(job, workplace, folder, FaultPoint(number, BEFORE))
    return folder / OUT
