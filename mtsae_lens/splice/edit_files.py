"""An edit as a small JSON file, to be replayed on the same SAE and model elsewhere."""

from __future__ import annotations

import hashlib
import stat
import warnings
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from sae_lens import SAE

from mtsae_lens.errors import ConfigError, DataError, ModelError, MTSAEWarning
from mtsae_lens.files import write_json
from mtsae_lens.splice.edit_schema import FORMAT, EditFile
from mtsae_lens.splice.edits import DirectionEdit, Edit, FeatureClamp, FeatureEdit
from mtsae_lens.splice.gates import AlwaysOpen, FeatureActiveGate, Gate, RunningEvidenceGate, SequenceRateGate
from mtsae_lens.splice.model_identity import identify
from mtsae_lens.splice.splicing import Splice

_MAX_BYTES = 512_000_000  # a thousand directions of a large model take a tenth of it


def weights_digest(sae: SAE[Any]) -> str:
    """SHA-256 over name, shape and float32 bytes of every parameter, in the order of their names."""
    digest = hashlib.sha256()
    for name, parameter in sorted(sae.named_parameters()):
        values = parameter.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(values.shape)} ".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def save_edit(
    path: Path | str, edit: Edit, splice: Splice, provenance: dict[str, Any] | None = None, *, model: Any = None
) -> None:
    """Write an edit with what it belongs to: hook, architecture and digest of the SAE's weights, and the language model.

    Args:
        path: of the file.
        edit: of a kind in `mtsae_lens.splice.edits`, with a gate of `mtsae_lens.splice.gates`.
        splice: of the SAE.
        provenance: where the edit came from, as JSON.
        model: the language model that the edit was made on; None leaves it out.

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
            "model": None if model is None else identify(model).model_dump(mode="json"),
            "edit": _edit_to_dict(edit),
            "gate": _gate_to_dict(edit.gate),
            "provenance": provenance or {},
        },
    )


def load_edit(path: Path | str, splice: Splice, *, model: Any = None) -> Edit:
    """Read an edit for this SAE; warn where it was made on another language model.

    Args:
        path: of a file that `save_edit` wrote.
        splice: of the SAE.
        model: the language model that the edit is for; None asks nothing of it.

    Raises:
        ConfigError: `splice` is none.
        DataError: no such file, not an edit, or one with numbers that no edit of this SAE can have.
        ModelError: the edit belongs to another hook, architecture or other weights.
    """
    path = Path(path)
    if not isinstance(splice, Splice):
        raise ConfigError(f"needed load_edit(path, Splice(sae)), or lm.splice of a HookedLM; got a {type(splice).__name__}")
    content = read_edit_file(path)
    architecture = splice.sae.cfg.architecture()
    if content.hook_name != splice.hook_name:
        raise ModelError(f"{path}: the edit belongs to {content.hook_name}, the SAE to {splice.hook_name}")
    if content.sae.architecture not in (None, architecture):
        raise ModelError(
            f"{path}: the edit belongs to an SAE of architecture {content.sae.architecture!r}; this one is {architecture!r}"
        )
    if content.sae.weights_sha256 != weights_digest(splice.sae):
        raise ModelError(f"{path}: the edit belongs to an SAE with other weights; its features would be other features here")
    problem = content.problem(splice.sae.cfg.d_sae, splice.sae.cfg.d_in)
    if problem is not None:
        raise DataError(f"{path}: damaged edit ({problem})")
    try:
        edit = content.edit.edit(content.gate.gate())
    except ConfigError as error:
        raise DataError(f"{path}: damaged edit ({error})") from error
    difference = None if model is None or content.model is None else content.model.difference(model)
    if content.model is not None and difference is not None:
        warnings.warn(
            f"{path}: the edit was made on {content.model.name}, and this {model.cfg.model_name} predicts other tokens (log-probabilities "
            f"differ by up to {difference:.2g} nats); what was measured of the edit may not hold here",
            MTSAEWarning,
            stacklevel=2,
        )
    return edit


def read_edit_file(path: Path) -> EditFile:
    """Read the content of an edit's file, with every type checked.

    Raises:
        DataError: no such file, or not an edit.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode) or about.st_size > _MAX_BYTES:
            raise DataError(f"{path}: expected an edit.json, got {about.st_size:,} bytes or no plain file")
        return EditFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except ValidationError as error:
        raise DataError(f"{path}: {_what_is_wrong(error)}") from error


def _what_is_wrong(error: ValidationError) -> str:
    """Say in one line what pydantic found first."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "json_invalid":
        return f"not JSON ({first['msg']})"
    if not place or place == "format":
        return f"needed an edit in the format {FORMAT!r}, such as 'mtsae unlearn' writes to edit.json"
    if first["type"] == "union_tag_invalid":
        return f"damaged edit (unknown {place} {first['ctx']['tag']!r})"
    came = repr(first["input"])
    expected = first["msg"].replace("Input should be", "expected")
    return f"damaged edit ({place}: {expected}; got {came if len(came) <= 60 else came[:60] + '...'})"


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
