"""Write JSON and tensors with a digest of their content in the file, so that damage is detected when they are read. Files without a
digest are read too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mtsae_lens.digests import digest_json, digest_tensors
from mtsae_lens.errors import DataError
from mtsae_lens.files import write_json, write_whole_file

DIGEST = "sha256"
"""Key of the digest in a sealed JSON file, and in the JSON under `SEAL`."""

SEAL = "seal"
"""Key in the metadata of a sealed safetensors file: JSON of the digest and of all other metadata. It is the only key, because safetensors
writes several keys in a random order, and equal content should give equal files."""

T = TypeVar("T")


def write_sealed_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write strict JSON with a digest of its content, which `read_json` checks.

    Args:
        path: the file.
        content: the content.
    """
    as_read = json.loads(json.dumps(content, allow_nan=False))  # tuples become lists, keys strings
    write_json(path, as_read | {DIGEST: digest_json(as_read)})


def read_json(path: Path, shape: type[T], remedy: str, *, sealed_with: str | None = None) -> T:
    """Read JSON that this package wrote, and check its shape and, if it is sealed, its digest.

    Args:
        path: file to read.
        shape: the type that the content must have, as pydantic validates it: a model, or a type such as `dict[str, Any]`.
        remedy: what the user should do if the file is damaged.
        sealed_with: a key that was never written without a digest: a file that has the key and no digest is damaged.

    Raises:
        DataError: the file cannot be read, is not JSON, or has another shape or another digest.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and (DIGEST in content or sealed_with in content):
            recorded = content.pop(DIGEST, None)
            if recorded != digest_json(content):
                raise DataError(f"{path}: expected the content of its SHA-256, got other content (damaged); {remedy}")
        return TypeAdapter(shape).validate_python(content)
    except DataError:
        raise
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"{path}: expected a file that this package wrote, got {f'{place}: ' if place else ''}{first['msg']} (damaged); {remedy}"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected JSON, got {type(error).__name__}: {error} (damaged); {remedy}") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file that holds a digest of its content, which `read_tensors` checks.

    Args:
        path: the file.
        tensors: tensors by name.
        metadata: further metadata.
    """
    metadata = {name: value for name, value in (metadata or {}).items() if name != DIGEST}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    seal = json.dumps(metadata | {DIGEST: digest_tensors(tensors, metadata)}, sort_keys=True)
    with write_whole_file(path) as partial:
        save_file(tensors, partial, metadata={SEAL: seal})


def read_tensors(path: Path, remedy: str, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file, and check its digest if it has one.

    Args:
        path: file to read.
        remedy: what the user should do if the file is damaged.
        device: device to put the tensors on.

    Returns:
        The tensors by name, and the metadata without the digest.

    Raises:
        DataError: the file cannot be read, or its digest differs.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dictionary)
        if SEAL in metadata:
            metadata = TypeAdapter(dict[str, str]).validate_json(metadata[SEAL])
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{path}: expected tensors, got {type(error).__name__}: {' '.join(str(error).split())} (damaged); {remedy}"
        ) from error
    recorded = metadata.pop(DIGEST, None)
    if recorded is not None and recorded != digest_tensors(tensors, metadata):
        raise DataError(f"{path}: expected the content of its SHA-256, got other content (damaged); {remedy}")
    return {name: tensor.to(device) for name, tensor in tensors.items()}, metadata
