"""Check the `cfg.json` of a saved SAE before anything is built from it: the file may come from anywhere."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError
from pydantic_core import from_json

from mtsae_lens.errors import ConfigError, ModelError
from mtsae_lens.sae.activation_interface import ACTIVATIONS
from mtsae_lens.sae.field_types import check_fields
from mtsae_lens.upstream import SAE_CLASS_REGISTRY

_MAX_BYTES = 16_000_000  # a configuration has a few thousand bytes


class _Metadata(BaseModel):
    """The metadata of an SAE that this package reads. None stands for a missing entry; other entries are ignored."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model_name: StrictStr | None = None
    hook_name: StrictStr | None = None
    hook_name_out: StrictStr | None = None
    dataset_path: StrictStr | None = None
    context_size: StrictInt | None = Field(None, ge=1, le=2**31 - 1)
    hook_head_index: StrictInt | None = Field(None, ge=0, le=2**31 - 1)
    prepend_bos: StrictBool | None = None
    model_from_pretrained_kwargs: dict[str, Any] | None = None
    local_contents: dict[str, StrictStr] | None = None


def check_saved_config(path: Path) -> None:
    """Check the `cfg.json` of an SAE's folder.

    Args:
        path: the file.

    Raises:
        ModelError: the file cannot be read, is not a JSON object, or holds values that are invalid for its architecture.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode) or about.st_size > _MAX_BYTES:
            raise ModelError(
                f"{path}: expected a file of at most {_MAX_BYTES:,} bytes, got {about.st_size:,} bytes or no file; give the folder of an SAE"
            )
        content = from_json(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise ModelError(
            f"{path}: expected a readable file, got the error {error.strerror or error}; check its path and permissions"
        ) from error
    except ValueError as error:
        kind = "UnicodeDecodeError" if isinstance(error, UnicodeDecodeError) else "JSONDecodeError"
        raise ModelError(
            f"{path}: expected an SAE, got one that cannot be loaded ({kind}: {str(error)[:200]}); copy the folder again"
        ) from error
    if not isinstance(content, dict):
        raise ModelError(
            f"{path}: expected an SAE, got one that cannot be loaded "
            f"(expected an object of settings, got a {type(content).__name__}); copy the folder again"
        )
    check_metadata(content.get("metadata", {}), str(path))
    architecture = content.get("architecture")
    if not isinstance(architecture, str) or architecture not in SAE_CLASS_REGISTRY:
        return  # SAELens's own loader reports it
    k, d_sae = content.get("k"), content.get("d_sae")
    activation = content.get("activation", "topk")
    try:
        check_fields(SAE_CLASS_REGISTRY[architecture][1], content)
    except ConfigError as error:
        raise ModelError(f"{path}: expected an SAE, got one that cannot be loaded ({error}); copy the folder again") from error
    if activation not in ACTIVATIONS:
        raise ModelError(
            f"{path}: expected an SAE, got one that cannot be loaded "
            f"(expected activation out of {', '.join(map(repr, ACTIVATIONS))}, got {activation!r}); copy the folder again"
        )
    reads_k = "k" in ACTIVATIONS[activation].fields
    if reads_k and isinstance(k, int) and isinstance(d_sae, int) and not 1 <= k <= d_sae:
        raise ModelError(
            f"{path}: expected an SAE, got one that cannot be loaded "
            f"(expected k from 1 to d_sae ({d_sae}), got {k}); copy the folder again"
        )


def check_metadata(metadata: Any, place: str) -> None:
    """Check the types of the metadata that this package reads.

    Args:
        metadata: the metadata of an SAE, a mapping if it is valid.
        place: the name of the SAE in an error.

    Raises:
        ModelError: the metadata is not a mapping, or an entry has another type than it must have.
    """
    if not isinstance(metadata, Mapping):
        raise ModelError(
            f"{place}: expected an SAE, got one that cannot be loaded "
            f"(expected a mapping as metadata, got a {type(metadata).__name__}); copy the folder again"
        )
    try:
        _Metadata.model_validate(dict(metadata))
    except (ValidationError, TypeError) as error:
        where = "metadata" + (f".{error.errors()[0]['loc'][0]}" if isinstance(error, ValidationError) else "")
        what = error.errors()[0]["msg"].replace("Input should be", "expected") if isinstance(error, ValidationError) else error
        came = f", got {str(error.errors()[0]['input'])[:80]!r}" if isinstance(error, ValidationError) else ""
        raise ModelError(
            f"{place}: expected an SAE, got one that cannot be loaded ({where}: {what}{came}); copy the folder again"
        ) from error
