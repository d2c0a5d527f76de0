"""Files written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mtsae_lens.errors import OutputError


def prepare_output_dir(out: Path) -> Path:
    """Create the folder and prove that it can be written to, before hours of work end in an error.

    Raises:
        OutputError: it is a file, or cannot be created or written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out):
            pass
    except OSError as error:
        raise OutputError(f"--out {out}: cannot be written ({error.strerror}); give a folder that you may write to") from error
    return out


def write_text(path: Path, text: str) -> None:
    """Write a file under another name, then rename it into place."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """The same for bytes."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        with suppress(OSError):
            partial.unlink()


def write_json(path: Path, content: Any) -> None:
    """Strict JSON (NaN is refused), written whole."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file, written whole."""
    with whole_file(path) as partial:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata=metadata)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file for a library to write; it appears at `path` only if the block ends without an error."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        raise OutputError(f"{path}: cannot be written ({error})") from error
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill; it appears at `path`, replacing what was there, only if the block ends without an error."""
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        shutil.rmtree(path, ignore_errors=True)
        partial.replace(path)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        raise OutputError(f"{path}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
