"""Damage files that are read again: damage must be refused or be harmless."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from faults.findings import Finding, attempt, of_command
from faults.jobs import JOBS, OUT, Job, interrupt_job, run, undisturbed
from faults.mutations import damage
from faults.runner import Family
from faults.workplace import CONTEXT, Workplace, contents, copy, differences
from mtsae_lens.export.standalone import load_edited
from mtsae_lens.facts.exploration import Exploration
from mtsae_lens.opening import open_sae
from mtsae_lens.splice.edit_files import load_edit

_SECONDS = 30.0


@dataclass(frozen=True)
class Artefact:
    """Files that are read again.

    Args:
        name: of the kind.
        folder: where a whole one is.
        files: patterns of the files that are damaged.
        use: reads the folder and returns a digest of all that came of it.
    """

    name: str
    folder: Callable[[Workplace], Path]
    files: tuple[str, ...]
    use: Callable[[Workplace, Path], str]


def hidden(d_in: int) -> torch.Tensor:
    """Activations to put through an SAE."""
    return torch.randn(2, CONTEXT, d_in, generator=torch.Generator().manual_seed(0))


def digest(*tensors: torch.Tensor) -> str:
    """SHA-256 over tensors."""
    made = hashlib.sha256()
    for tensor in tensors:
        made.update(str(tuple(tensor.shape)).encode() + tensor.detach().float().contiguous().numpy().tobytes())
    return made.hexdigest()


@torch.no_grad()
def _use_sae(workplace: Workplace, folder: Path) -> str:
    lm, _ = open_sae(folder)
    feature_acts = lm.sae.encode(hidden(lm.sae.cfg.d_in))
    return f"{digest(feature_acts, lm.sae.decode(feature_acts))} {lm.splice.hook_name} {lm.cutter.context_size} {lm.cutter.prepend_bos}"


@torch.no_grad()
def _use_edit(workplace: Workplace, folder: Path) -> str:
    lm, _ = open_sae(workplace.sae)
    return digest(lm.splice.edited(hidden(lm.sae.cfg.d_in), load_edit(folder / "edit.json", lm.splice)))


def _use_facts(workplace: Workplace, folder: Path) -> str:
    facts = Exploration.open(folder)
    read = [
        facts.about["corpora"],
        facts.table.to_pylist(),
        [facts.examples(feature) for feature in range(facts.about["d_sae"])],
    ]
    return hashlib.sha256(repr(read).encode()).hexdigest()


@torch.no_grad()
def _use_exported(workplace: Workplace, folder: Path) -> str:
    model = load_edited(folder)
    return digest(model(torch.arange(5, 5 + CONTEXT).unsqueeze(0)).logits)


@cache
def _expected(artefact: Artefact, workplace: Workplace, folder: Path) -> str:
    return artefact.use(workplace, folder)


def read_damaged(workplace: Workplace, rng: random.Random, folder: Path, *, artefact: Artefact) -> Finding:
    """Damage one file of a copy and read it in this process."""
    whole = artefact.folder(workplace)
    expected = _expected(artefact, workplace, whole)
    damaged = copy(whole, folder / OUT)
    what = f"{artefact.name}, {_damage_one(damaged, artefact.files, rng)}"

    def use() -> str:
        return "same" if artefact.use(workplace, damaged) == expected else "different"

    outcome, detail = attempt(use, _SECONDS)
    if artefact.name == "export" and outcome in ("traceback", "not one line"):
        outcome = "refused"  # the stand-alone loader raises exceptions of Python: one is its refusal
    return Finding(outcome, what, detail)


def _damage_one(folder: Path, patterns: tuple[str, ...], rng: random.Random) -> str:
    files = sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
    path = rng.choice(files)
    described = damage(path, [other for other in files if other.parent == path.parent], rng)
    return f"{path.parent.relative_to(folder)}/{described}".removeprefix("./")


def resume_damaged(
    workplace: Workplace, rng: random.Random, folder: Path, *, job: Job, files: tuple[str, ...], before: str | None
) -> Finding:
    """Damage one file of a run that was interrupted, or of a finished one, and give the command again."""
    source = workplace.folder / f"job-{job.name}" / OUT if before is None else interrupt_job(job, workplace, before)
    shutil.copytree(source, folder / OUT)
    state = "finished" if before is None else "interrupted"
    what = f"{state} {job.name}, {_damage_one(folder / OUT, files, rng)}"
    outcome, detail = of_command(run(job, workplace, folder, again=True))
    if outcome != "done":
        return Finding(outcome, what, detail)
    differ = differences(_results(contents(folder / OUT)), _results(undisturbed(job, workplace).contents))
    return Finding("different" if differ else "equal", what, differ)


def _results(found: dict[str, Any]) -> dict[str, Any]:
    """Return the results without the state for resuming, because a damaged checkpoint may remain if another one was used."""
    return {name: value for name, value in found.items() if not name.startswith("checkpoints/")}


_PROMISE = "A damaged file is refused in one line, or gives the same result as before. It is never used as something else."
_ARTEFACTS = (
    Artefact("sae", lambda workplace: workplace.sae, ("cfg.json", "*.safetensors"), _use_sae),
    Artefact("edit", lambda workplace: workplace.edit.parent, ("edit.json",), _use_edit),
    Artefact("facts", lambda workplace: workplace.facts, ("explore.json", "features.parquet", "examples.parquet"), _use_facts),
    Artefact("export", lambda workplace: workplace.exported, ("*.json", "*.safetensors", "hook/*"), _use_exported),
)


def _reading(artefact: Artefact) -> Family:
    exempt = "; an exception of the stand-alone loader counts as its refusal" if artefact.name == "export" else ""
    return Family(
        name=f"damage/{artefact.name}",
        promise=_PROMISE,
        method=f"one file of the folder is damaged at random, then the folder is loaded and used{exempt}",
        trial=partial(read_damaged, artefact=artefact),
        count=150,
        quick=4,
        prepare=artefact.folder,
        seconds=_SECONDS,
        per_process=25,
    )


def _resuming(name: str, job: Job, files: tuple[str, ...], before: str | None, count: int) -> Family:
    def prepare(workplace: Workplace) -> Any:
        return undisturbed(job, workplace) if before is None else interrupt_job(job, workplace, before)

    return Family(
        name=f"damage/{name}",
        promise=_PROMISE,
        method="one file of a finished run is damaged at random, then the same command runs again"
        if before is None
        else "one file of a killed run is damaged at random, then the command resumes",
        trial=partial(resume_damaged, job=job, files=files, before=before),
        count=count,
        quick=2,
        prepare=prepare,
    )


FAMILIES = [
    *(_reading(artefact) for artefact in _ARTEFACTS),
    _resuming("checkpoint", JOBS["train"], ("checkpoints/*/*", "training_log.jsonl"), "step_000000008", 150),
    _resuming("state", JOBS["explore"], ("state/*", "settings.json"), "explore.json", 120),
    _resuming("finished-facts", JOBS["explore"], ("*.json", "*.parquet"), None, 60),
    _resuming("grid", JOBS["grid"], ("*.json",), None, 120),
]
