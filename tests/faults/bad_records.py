"""Try `edit.json` and `cfg.json` files with invalid values."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

from faults.damage import hidden
from faults.findings import Finding, attempt, shorten
from faults.junk import value
from faults.runner import Family
from faults.workplace import D_SAE, Workplace
from mtsae_lens.opening import open_sae
from mtsae_lens.splice.direction_edits import DirectionEdit, orthonormal_rows
from mtsae_lens.splice.edit_files import load_edit, save_edit
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.splice.edits import FeatureClamp, FeatureEdit
from mtsae_lens.splice.evidence_gates import TwoStateGate
from mtsae_lens.splice.gate_interface import Gate
from mtsae_lens.splice.gates import AlwaysOpen, FeatureActiveGate, RunningEvidenceGate, SequenceRateGate
from mtsae_lens.splice.hooked_lm import HookedLM

_SECONDS = 10.0
_NEARLY = (-1, D_SAE, 1.5, True, "2", "12", 5, -0.5, 1e30, float("nan"), float("inf"), [1, 1], [[1]], None, {}, 2**40)


@cache
def _lm(workplace: Workplace) -> HookedLM:
    return open_sae(workplace.sae)[0]


def _edits(lm: HookedLM) -> Iterator[Edit]:
    some = torch.tensor([1, 5])
    gates: list[Gate] = [
        AlwaysOpen(),
        FeatureActiveGate(some),
        SequenceRateGate(some, 0.1),
        RunningEvidenceGate(some, torch.tensor([0.5, 0.7]), 0.9, 0.1),
        TwoStateGate("features", some, torch.tensor([[0.5, 0.7]]), torch.tensor([-0.5]), 0.1, 0.05, 0.1),
    ]
    directions, center = orthonormal_rows(lm.sae.W_dec[:2].detach()), torch.zeros(lm.sae.cfg.d_in)
    for gate in gates:
        yield FeatureEdit((3, 14), 1.0, gate)
        yield FeatureClamp((3, 14), (0.5, 0.25), "fires", gate)
        yield DirectionEdit(directions, center, 0.0, gate)


@cache
def _edit_records(workplace: Workplace) -> list[dict[str, Any]]:
    lm, path = _lm(workplace), Path("an-edit.json")
    records = []
    for edit in _edits(lm):
        save_edit(path, edit, lm.splice)
        records.append(json.loads(path.read_text()))
    return records


def _change(record: dict[str, Any], rng: random.Random, within: Callable[[str], bool] = lambda name: True) -> str:
    """Change one or two values somewhere in a record, in place, and say which."""
    changed = []
    for _ in range(rng.choice((1, 1, 2))):
        owner: Any = record
        names: list[str] = []
        while True:
            keys = [key for key in (owner if isinstance(owner, dict) else range(len(owner))) if names or within(str(key))]
            if not keys:
                break
            key = rng.choice(keys)
            names.append(str(key))
            inner = owner[key]
            if not isinstance(inner, dict | list) or not inner or rng.random() < 0.25:
                owner[key] = rng.choice(_NEARLY) if rng.random() < 0.5 else value(rng)
                if isinstance(owner, dict) and rng.random() < 0.1:
                    del owner[key]
                changed.append(f"{'.'.join(names)}={shorten(owner[key], 60) if _has(owner, key) else 'missing'}")
                break
            owner = inner
    return ", ".join(changed)


def _has(owner: Any, key: Any) -> bool:
    return key in owner if isinstance(owner, dict) else True


def edit_record(workplace: Workplace, rng: random.Random, folder: Path) -> Finding:
    """Odd values in an edit, which is then loaded and applied."""
    record = copy.deepcopy(rng.choice(_edit_records(workplace)))
    what = _change(record, rng, lambda name: name != "provenance")
    path = folder / "edit.json"
    path.write_text(json.dumps(record), errors="surrogatepass")
    lm = _lm(workplace)

    @torch.no_grad()
    def use() -> str:
        edited = lm.splice.edited(hidden(lm.sae.cfg.d_in), load_edit(path, lm.splice))
        return "done" if torch.isfinite(edited).all() else "not finite"

    outcome, detail = attempt(use, _SECONDS)
    return Finding(outcome, f"edit.json of kind {record.get('edit', {}).get('kind') if isinstance(record.get('edit'), dict) else '?'}: {what}",
                   detail)  # fmt: skip


def sae_record(workplace: Workplace, rng: random.Random, folder: Path) -> Finding:
    """Odd values in the `cfg.json` of an SAE, which is then opened and encodes."""
    shutil.copy(workplace.sae / "sae_weights.safetensors", folder)
    record = json.loads((workplace.sae / "cfg.json").read_text())
    what = _change(record, rng)
    (folder / "cfg.json").write_text(json.dumps(record), errors="surrogatepass")

    @torch.no_grad()
    def use() -> str:
        lm, _ = open_sae(folder)
        feature_acts = lm.sae.encode(hidden(lm.sae.cfg.d_in))
        return "done" if torch.isfinite(lm.sae.decode(feature_acts)).all() else "not finite"

    outcome, detail = attempt(use, _SECONDS)
    return Finding(outcome, f"cfg.json: {what}", detail)


def _family(name: str, trial: Any, method: str, count: int) -> Family:
    return Family(
        name=name,
        promise="A record with a value that cannot be used is refused in one line when it is read.",
        method=method,
        trial=trial,
        count=count,
        quick=40,
        injects=False,
        prepare=lambda workplace: workplace.sae,
        seconds=_SECONDS,
        per_process=100,
    )


FAMILIES = [
    _family("input/edit", edit_record, "one or two odd values in `edit.json`, which is then loaded and applied", 1500),
    _family("input/cfg", sae_record, "one or two odd values in `cfg.json`; the SAE is then opened and used", 1000),
]
