"""Save an edit as a small JSON file, and load it for the same SAE and model elsewhere."""

from __future__ import annotations

import hashlib
import stat
import warnings
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from sae_lens import SAE

import mtsae_lens.splice.evidence_gates  # registers its gates
import mtsae_lens.splice.group_gate  # noqa: F401  # registers its gate
from mtsae_lens.errors import ConfigError, DataError, ModelError, MTSAEWarning
from mtsae_lens.files import write_json
from mtsae_lens.splice import error_edits  # noqa: F401  # registers its edits
from mtsae_lens.splice.edit_interface import EDITS, Edit
from mtsae_lens.splice.edit_schema import FORMAT, EditFile, PartRecord
from mtsae_lens.splice.gate_interface import GATES
from mtsae_lens.splice.hook_pair import describe_place, edited_width
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.model_identity import ModelIdentity, identify
from mtsae_lens.splice.serialization import Serializable, describe_first
from mtsae_lens.splice.splicing import Splice

_MAX_BYTES = 512_000_000  # a thousand directions of a large model take a tenth of this


def weights_digest(sae: SAE[Any]) -> str:
    """Compute the SHA-256 digest of the name, shape and float32 bytes of every parameter, in the order of their names.

    Args:
        sae: the SAE.

    Returns:
        The digest in hexadecimal.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(sae.named_parameters()):
        values = parameter.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(values.shape)} ".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def save_edit(
    path: Path | str, edit: Edit, at: HookedLM | Splice, provenance: dict[str, Any] | None = None, *, model: Any = None
) -> None:
    """Write an edit to a file, with the hook, the architecture and weights digest of its SAE, and the language model.

    Args:
        path: the file to write.
        edit: an edit of a registered class (`register_edit`), with a gate of a registered class (`register_gate`).
        at: the SAE to which the edit belongs, in the language model that the edit was made on.
        provenance: where the edit came from, as JSON.
        model: the language model, if `at` is a `Splice`, which has none; None leaves it out.

    Raises:
        ConfigError: `at` is neither a `HookedLM` nor a `Splice`.
        DataError: the class of the edit or of its gate is not registered, or a field has a type that cannot be saved.
        OutputError: the file cannot be written.
    """
    splice, model = _place(at, model, "save_edit(path, edit, lm)")
    write_json(
        Path(path),
        {
            "format": FORMAT,
            "hook_name": splice.hook_name,
            **({} if len(splice.hook_names) == 1 else {"hook_name_out": splice.decoded_hook_name}),
            "sae": {"architecture": splice.sae.cfg.architecture(), "weights_sha256": weights_digest(splice.sae)},
            "model": None if model is None else identify(model).model_dump(mode="json"),
            "edit": _to_json("edit", edit, gate=edit.gate),
            "gate": _to_json("gate", edit.gate),
            "provenance": provenance or {},
        },
    )


def load_edit(path: Path | str, at: HookedLM | Splice, *, model: Any = None, allow_other_model: bool = False) -> Edit:
    """Read an edit for this SAE, and check that it was made on this language model.

    Args:
        path: a file that `save_edit` wrote.
        at: the SAE in its language model. A `Splice` has no language model.
        model: the language model, if `at` is a `Splice`; None skips the comparison.
        allow_other_model: warn, instead of raising an error, if the edit was made on another language model.

    Returns:
        The edit, with its gate.

    Raises:
        ConfigError: `at` is neither a `HookedLM` nor a `Splice`.
        DataError: the file is missing or is not an edit, its class is not registered, or a number does not fit this SAE.
        ModelError: the edit belongs to another hook, architecture, other weights of the SAE, or another language model.
    """
    path = Path(path)
    splice, model = _place(at, model, "load_edit(path, lm)")
    content = read_edit_file(path)
    architecture = splice.sae.cfg.architecture()
    made_for = (content.hook_name,) if content.hook_name_out is None else (content.hook_name, content.hook_name_out)
    if made_for != splice.hook_names:
        raise ModelError(
            f"{path}: expected an SAE {describe_place(made_for)}, as the edit was made for, got one {splice.place}; give the edit's SAE"
        )
    if content.sae.architecture not in (None, architecture):
        raise ModelError(
            f"{path}: expected an SAE of architecture {content.sae.architecture!r}, as the edit was made for, got {architecture!r}; give the "
            "edit's SAE"
        )
    if content.sae.weights_sha256 != weights_digest(splice.sae):
        raise ModelError(
            f"{path}: expected the SAE that the edit was made for, got one with other weights, whose features differ; give the edit's SAE"
        )
    gate = _build(path, "gate", content.gate, GATES, splice)
    edit = _build(path, "edit", content.edit, EDITS, splice, gate=gate)
    if model is not None and content.model is not None:
        _check_model(path, content.model, model, allow_other_model)
    return edit


def _place(at: Any, model: Any, call: str) -> tuple[Splice, Any]:
    """Return the SAE at its hook, and the language model if one is given."""
    if isinstance(at, HookedLM):
        return at.splice, at.model if model is None else model
    if not isinstance(at, Splice):
        raise ConfigError(f"expected a HookedLM or a Splice, got a {type(at).__name__}; give {call}")
    return at, model


def _check_model(path: Path, made_on: ModelIdentity, model: Any, allow_other_model: bool) -> None:
    """Check that a language model is the one that an edit was made on.

    Raises:
        ModelError: it is another one, and this is not allowed.
    """
    difference = made_on.difference(model)
    if difference is None:
        return
    what = "another vocabulary or a shorter context"
    if difference != float("inf"):
        what = f"other predictions: log-probabilities differ by {difference:.2g} nats on average"
    if not allow_other_model:
        raise ModelError(
            f"{path}: expected {made_on.name}, the language model that the edit was made on, got {model.cfg.model_name} ({what}); give that "
            "model, or allow another one with --allow-other-model or load_edit(..., allow_other_model=True)"
        )
    warnings.warn(
        f"{path}: the edit was made on {made_on.name}, and this {model.cfg.model_name} is another model ({what}); measurements of the edit may "
        "not hold here",
        MTSAEWarning,
        stacklevel=3,
    )


def read_edit_file(path: Path) -> EditFile:
    """Read an edit file. All types are checked, except those of the fields of the edit and of the gate.

    Args:
        path: the file.

    Raises:
        DataError: the file is missing or is not an edit.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode) or about.st_size > _MAX_BYTES:
            raise DataError(
                f"{path}: expected an edit.json, got {about.st_size:,} bytes or no regular file; give the file of an edit"
            )
        return EditFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"{path}: expected a readable file, got the error {error.strerror or error}; check its path and permissions"
        ) from error
    except ValidationError as error:
        raise DataError(f"{path}: {_what_is_wrong(error)}") from error


def _what_is_wrong(error: ValidationError) -> str:
    """Describe the first error that pydantic found, in one line."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return f"expected JSON, got {first['msg']!r}; save the edit again"
    if first["loc"] in ((), ("format",)):
        return f"expected an edit in the format {FORMAT!r}, got another file; give one that 'mtsae unlearn' wrote to edit.json"
    return f"expected an edit, got a damaged edit ({describe_first(error)}); save the edit again"


def _to_json(part: str, value: Serializable, **others: Any) -> dict[str, Any]:
    """Return an edit or a gate as JSON, after checking that it can be read back.

    Args:
        part: `edit` or `gate`.
        value: the edit or gate.
        others: other arguments of `from_json`.
    """
    name = type(value).__name__
    if not isinstance(value, Serializable):
        raise DataError(
            f"expected a registered {part} to save, got one of class {name}; let its class inherit from mtsae_lens.{part.capitalize()} and "
            f'decorate it with @register_{part}("a_name")'
        )
    content = value.to_json()
    try:
        type(value).from_json(PartRecord.model_validate(content).fields, **others)
    except ConfigError as error:
        raise DataError(
            f"expected a {part} that can be read back, got one of class {name} that cannot ({error}); mend the fields of its class"
        ) from error
    return content


Part = TypeVar("Part", bound=Serializable)


def _build(path: Path, part: str, record: PartRecord, registry: dict[str, type[Part]], splice: Splice, **others: Any) -> Part:
    """Build an edit or a gate from its record, and check it against the SAE."""
    cls = registry.get(record.kind)
    if cls is None and record.class_name is not None:
        raise DataError(
            f"{path}: expected a registered {part}, got {record.kind[:60]!r} of class {record.class_name}; import that class, which registers "
            "it, then load the edit again"
        )
    if cls is None:
        raise DataError(
            f"{path}: expected one of {', '.join(sorted(registry))} as {part}, got {record.kind[:60]!r} (damaged edit); save the edit again"
        )
    try:
        built = cls.from_json(record.fields, **others)
        built.check_fits(splice.sae.cfg.d_sae, edited_width(splice.sae))
    except ConfigError as error:
        separator = ": " if str(error).startswith("expected ") else "."  # an error of one field begins with its name
        raise DataError(f"{path}: damaged edit ({part}{separator}{error}); save the edit again") from error
    return built
