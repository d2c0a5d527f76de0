"""Compute SHA-256 digests of files, tensors and JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def digest_file(path: Path) -> str:
    """Compute the SHA-256 digest of the bytes of a file.

    Args:
        path: the file.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_json(content: Any) -> str:
    """Compute the SHA-256 digest of a JSON value, independent of the order of its keys and its layout in a file.

    Args:
        content: the value.
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def digest_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Compute the SHA-256 digest of named tensors.

    Args:
        tensors: tensors whose names, dtypes, shapes and bytes are digested, in the order of their names.
        metadata: further metadata of a safetensors file.
    """
    digest = hashlib.sha256(json.dumps(metadata or {}, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
