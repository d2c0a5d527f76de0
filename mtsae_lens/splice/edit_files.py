"""An edit as a small JSON file, to be replayed on the same SAE and model elsewhere."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE

from mtsae_lens.errors import ConfigError, DataError, ModelError
from mtsae_lens.files import write_json
from mtsae_lens.splice.edits import DirectionEdit, Edit, FeatureClamp, FeatureEdit
from mtsae_lens.splice.gates import AlwaysOpen, FeatureActiveGate, Gate, RunningEvidenceGate, SequenceRateGate
from mtsae_lens.splice.splicing import Splice

FORMAT = "mtsae-edit-2"


def weights_digest(sae: SAE[Any]) -> str:
    """SHA-256 over name, shape and float32 bytes of every parameter, in the order of their names."""
    digest = hashlib.sha256()
    for name, parameter in sorted(sae.named_parameters()):
        values = parameter.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(values.shape)} ".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def save_edit(path: Path | str, edit: Edit, splice: Splice, provenance: dict[str, Any] | None = None) -> None:
    """Write an edit with what it belongs to: hook, architecture and digest of the SAE's weights; and where it came from.

    Raises:
        DataError: an edit or gate of a class of your own, which has no form in a file.
        OutputError: the file cannot be written.
    """
    write_json(
        Path(path),
        {
            "format": FORMAT,
            "hook_name": splice.hook_name,
            "sae": {"architecture": splice.sae.cfg.architecture(), "weights_sha256": weights_digest(splice.sae)},
            "edit": _edit_to_dict(edit),
            "gate": _gate_to_dict(edit.gate),
            "provenance": provenance or {},
        },
    )


def load_edit(path: Path | str, splice: Splice) -> Edit:
    """Read an edit for this SAE.

    Raises:
        ConfigError: `splice` is none.
        DataError: no such file, or not an edit.
        ModelError: the edit belongs to another hook or to other weights.
    """
    path = Path(path)
    if not isinstance(splice, Splice):
        raise ConfigError(f"needed load_edit(path, Splice(sae)), or lm.splice of a HookedLM; got a {type(splice).__name__}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path}: needed an edit in the format {FORMAT!r}, such as 'mtsae unlearn' writes to edit.json")
    try:
        hook_name, digest = content["hook_name"], content["sae"]["weights_sha256"]
        edit = _edit(content["edit"], _gate(content["gate"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: damaged edit ({type(error).__name__}: {error})") from error
    if hook_name != splice.hook_name:
        raise ModelError(f"{path}: the edit belongs to {hook_name}, the SAE to {splice.hook_name}")
    if digest != weights_digest(splice.sae):
        raise ModelError(f"{path}: the edit belongs to an SAE with other weights; its features would be other features here")
    return edit


def _edit_to_dict(edit: Edit) -> dict[str, Any]:
    if isinstance(edit, FeatureEdit):
        return {"kind": "features", "features": list(edit.features), "multiplier": edit.multiplier}
    if isinstance(edit, FeatureClamp):
        return {"kind": "clamp", "features": list(edit.features), "values": list(edit.values), "where": edit.where}
    if isinstance(edit, DirectionEdit):
        return {
            "kind": "directions",
            "basis": edit.basis.tolist(),
            "center": edit.center.tolist(),
            "multiplier": edit.multiplier,
        }
    raise DataError(
        f"an edit of type {type(edit).__name__} has no form in a file; only FeatureEdit, FeatureClamp and DirectionEdit have one"
    )


def _edit(content: dict[str, Any], gate: Gate) -> Edit:
    kind = content["kind"]
    if kind == "directions":
        basis, center = torch.tensor(content["basis"]), torch.tensor(content["center"])
        return DirectionEdit(basis, center, float(content["multiplier"]), gate)
    features = tuple(int(feature) for feature in content["features"])
    if kind == "features":
        return FeatureEdit(features, float(content["multiplier"]), gate)
    if kind == "clamp":
        return FeatureClamp(features, tuple(float(value) for value in content["values"]), content["where"], gate)
    raise ValueError(f"unknown edit {kind!r}")


def _gate_to_dict(gate: Gate) -> dict[str, Any]:
    if isinstance(gate, FeatureActiveGate):
        return {"kind": "feature_active", "features": gate.features.tolist()}
    if isinstance(gate, SequenceRateGate):
        return {"kind": "sequence_rate", "features": gate.features.tolist(), "threshold": gate.threshold}
    if isinstance(gate, RunningEvidenceGate):
        return {
            "kind": "running_evidence",
            "features": gate.features.tolist(),
            "weights": gate.weights.tolist(),
            "decay": gate.decay,
            "threshold": gate.threshold,
        }
    if isinstance(gate, AlwaysOpen):
        return {"kind": "always"}
    raise DataError(
        f"a gate of type {type(gate).__name__} has no form in a file; only those of mtsae_lens.splice.gates have one"
    )


def _gate(content: dict[str, Any]) -> Gate:
    kind = content["kind"]
    if kind == "always":
        return AlwaysOpen()
    if kind not in ("feature_active", "sequence_rate", "running_evidence"):
        raise ValueError(f"unknown gate {kind!r}")
    features = torch.tensor(content["features"], dtype=torch.long)
    if kind == "feature_active":
        return FeatureActiveGate(features)
    if kind == "sequence_rate":
        return SequenceRateGate(features, float(content["threshold"]))
    weights = torch.tensor(content["weights"])
    return RunningEvidenceGate(features, weights, float(content["decay"]), float(content["threshold"]))
