"""Record the language model and the text that an SAE was trained on, and find exactly these again.

On the machine where an SAE was trained, its metadata hold the absolute path of a local model or text, so every loader finds it from any
working directory, and a digest of the contents, so a changed file is noticed. A shared copy holds neither: `share_metadata` replaces a
path by `elsewhere:NAME`, which no loader can mistake for a file of the reader. A name that is not local, such as `embedded` or a name
on the hub, is kept as it is.

An SAE recorded by an older version, or by SAELens's own runner, may hold a relative path. It is first looked up relative to the
directory in which the SAE was trained, if its `runner_cfg.json` reveals that directory. A file of that name in the working directory is
used with a warning.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from mtsae_lens.assets import EMBEDDED_MODELS
from mtsae_lens.data.bridges import BRIDGE_PREFIX
from mtsae_lens.data.documents import EMBEDDED
from mtsae_lens.data.sources import source_parts, split_part
from mtsae_lens.data.text_files import files_in
from mtsae_lens.errors import DataError, ModelError, MTSAEWarning
from mtsae_lens.machine_paths import is_here, last_part, shorten
from mtsae_lens.upstream import RUNNER_CFG_FILENAME, SAEMetadata

ELSEWHERE = "elsewhere:"
DIGESTS = "local_contents"
"""Metadata field with the digests of local files, by field. Every SAE recorded by this package has it, possibly empty."""

Field: TypeAlias = Literal["model_name", "dataset_path"]
_OPTION: dict[Field, str] = {"model_name": "--model", "dataset_path": "--dataset"}
_MODEL_SUFFIXES = (".json", ".safetensors", ".model", ".txt")
_CHUNK, _N_CHUNKS = 65_536, 16


def record_origins(metadata: SAEMetadata, model: str | None, source: str | None) -> None:
    """Write the names of the model and the text into an SAE's metadata: local ones as absolute paths, with a digest of their contents.

    Args:
        metadata: the metadata, changed in place.
        model: name of the language model, as `load_language_model` takes it; None for a model that was given as an object.
        source: the text, as `read_documents` takes it; None for rows that were given as an object.
    """
    recorded: dict[Field, str | None] = {
        "model_name": None if model is None else absolute_name("model_name", model),
        "dataset_path": None if source is None else absolute_name("dataset_path", source),
    }
    for name, value in recorded.items():
        setattr(metadata, name, value)
    setattr(metadata, DIGESTS, digest_contents(recorded))


def digest_contents(recorded: Mapping[Field, str | None]) -> dict[str, str]:
    """Digest the contents of what is local and here.

    Args:
        recorded: names of model and text as `absolute_name` returns them, by their fields of the metadata.

    Returns:
        Digests by field, without those of names that stand for no file here.
    """
    files = {name: _files_of(name, value) for name, value in recorded.items()}
    return {name: _digest(found) for name, found in files.items() if found}


def find_model(metadata: SAEMetadata, sae: Path | str) -> str | None:
    """Return the name under which `load_language_model` finds the model that an SAE was trained on; None if the SAE records none.

    Args:
        metadata: metadata of the SAE.
        sae: folder of the SAE, named in errors and used to resolve relative paths.

    Raises:
        ModelError: the model is not on this machine, or it has changed since.
    """
    return _find(metadata, "model_name", sae, ModelError)


def find_source(metadata: SAEMetadata, sae: Path | str) -> str | None:
    """Return the text that an SAE was trained on, as `read_documents` takes it; None if the SAE records none.

    Args:
        metadata: metadata of the SAE.
        sae: folder of the SAE, named in errors and used to resolve relative paths.

    Raises:
        DataError: the text is not on this machine, or it has changed since.
    """
    return _find(metadata, "dataset_path", sae, DataError)


def share_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of an SAE for use on other machines: `elsewhere:NAME` in place of every path, and no digests of local files.

    Args:
        metadata: the metadata, which is not changed.
    """
    shared = {name: value for name, value in metadata.items() if name != DIGESTS}
    is_recorded_here = DIGESTS in metadata
    for name in _OPTION:
        if isinstance(value := shared.get(name), str):
            shared[name] = _map_parts(name, value, lambda path: _share(path, is_recorded_here), _share_suffix)
    return shared


def display_name(name: str) -> str:
    """Return a readable name of a model or text: the last component of a path, or of `elsewhere:NAME`.

    Args:
        name: name of a model or text, as the metadata record it.
    """
    prefix, bare = _split_bridge(name)
    parts = [split_part(part) for part in source_parts(bare)]
    return prefix + "+".join(
        last_part(path.removeprefix(ELSEWHERE).rstrip("/")) + shorten(rest, anywhere=True) for path, rest in parts
    )


def _share(path: str, is_recorded_here: bool) -> str:
    if path.startswith(ELSEWHERE):
        return path
    is_path = last_part(path) != path or path.startswith((".", "~")) or (not is_recorded_here and _is_file_name(path))
    return ELSEWHERE + Path(last_part(path)).name if is_path else path


def _share_suffix(path: str, suffix: str) -> str:
    """Shorten paths in the options and the filter of a local text; the options of a hub dataset are kept."""
    return shorten(suffix, anywhere=True) if path.startswith(ELSEWHERE) else suffix


def _is_file_name(path: str) -> bool:
    """Return whether a relative name in an old record can only be a file, such as `texts/land.txt`; `owner/name` may be a hub dataset."""
    return Path(path).suffix in (".txt", ".jsonl", ".parquet", ".gz", ".zst") or path.count("/") > 1


def _split_bridge(name: str) -> tuple[str, str]:
    return (BRIDGE_PREFIX, name.removeprefix(BRIDGE_PREFIX)) if name.startswith(BRIDGE_PREFIX) else ("", name)


def _map_parts(
    name: Field,
    value: str,
    change: Callable[[str], str],
    change_suffix: Callable[[str, str], str] = lambda path, suffix: suffix,
) -> str:
    """Change every path in a name of a model or text.

    Args:
        name: the field of the metadata.
        value: its value.
        change: returns the new form of a path.
        change_suffix: returns the new form of what follows a path in a source, such as `@field=value`, given the path's new form.
    """
    if name == "model_name":
        prefix, bare = _split_bridge(value)
        return prefix + change(bare)
    changed = []
    for part in source_parts(value):
        path, suffix = split_part(part)
        new_path = change(path)
        changed.append(new_path + change_suffix(new_path, suffix))
    return "+".join(changed)


def absolute_name(name: Field, value: str) -> str:
    """Return the name of a model or text with local paths made absolute, as an SAE records it.

    Args:
        name: its field of the metadata.
        value: the name as it was given.
    """
    fixed = EMBEDDED_MODELS if name == "model_name" else (EMBEDDED,)

    def change(path: str) -> str:
        local = Path(path).is_dir() if name == "model_name" else is_here(path)
        return os.path.abspath(path) if path not in fixed and local else path

    return _map_parts(name, value, change)


def _find(metadata: SAEMetadata, name: Field, sae: Path | str, kind: type[ModelError] | type[DataError]) -> str | None:
    value = getattr(metadata, name)
    if value is None:
        return None
    option, digests = _OPTION[name], getattr(metadata, DIGESTS)
    fixed = EMBEDDED_MODELS if name == "model_name" else (EMBEDDED,)

    def missing(path: str) -> Exception:
        return kind(
            f"{sae}: expected {path}, on which it was trained, got no such file or folder on this machine; give {option} "
            f"{'FOLDER' if name == 'model_name' else 'PATH'}"
        )

    def here(path: str) -> str:
        if path in fixed:
            return path
        if path.startswith(ELSEWHERE):
            raise missing(path.removeprefix(ELSEWHERE))
        if last_part(path) != path:  # an absolute path of any system
            if not is_here(path):
                raise missing(path)
            return path
        if not isinstance(digests, dict):
            return _find_relative(path, Path(sae), option, missing)
        if is_here(path):
            raise kind(
                f"{sae}: expected the name {path!r}, on which it was trained, got a file or folder {path!r} in the working directory; run "
                f"this from another directory, or give {option} ./{path} to use it"
            )
        return path

    found = _map_parts(name, value, here)
    digest = digests.get(name) if isinstance(digests, dict) else None
    if digest is not None and _digest(_files_of(name, found)) != digest:
        raise kind(
            f"{sae}: expected {found} as it was in training, got changed contents; give {option} {found} to use it as it is now"
        )
    return found


def _find_relative(path: str, sae: Path, option: str, missing: Any) -> str:
    """Resolve a relative path in an old record."""
    directory = _training_directory(sae)
    if directory is not None and is_here(str(directory / path)):
        return str(directory / path)
    if is_here(path):
        warnings.warn(
            f"{sae}: trained on {path!r} in a working directory that was not recorded; using {os.path.abspath(path)}. Give {option} to be sure",
            MTSAEWarning,
            stacklevel=2,
        )
        return path
    if path.startswith((".", "~")) or _is_file_name(path):
        raise missing(path)
    return path


def _training_directory(sae: Path) -> Path | None:
    """Return the working directory in which an SAE was trained, if its run recorded a relative output folder."""
    try:
        output = Path(json.loads((sae / RUNNER_CFG_FILENAME).read_text(encoding="utf-8"))["output_path"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    folder, parts = sae.resolve(), Path(os.path.normpath(output)).parts
    if output.is_absolute() or not parts or folder.parts[-len(parts) :] != parts:
        return None
    return Path(*folder.parts[: -len(parts)])


def _files_of(name: Field, value: str | None) -> list[Path]:
    """Return the local files of a recorded name, in a fixed order."""
    if value is None:
        return []
    if name == "model_name":
        folder = Path(_split_bridge(value)[1])
        if value in EMBEDDED_MODELS or not folder.is_absolute() or not folder.is_dir():
            return []
        return sorted(file for file in folder.iterdir() if file.suffix in _MODEL_SUFFIXES and file.is_file())
    paths = [Path(split_part(part)[0]) for part in source_parts(value)]
    return [file for path in paths if path.is_absolute() and path.exists() for file in files_in(path)]


def _digest(files: Iterable[Path]) -> str:
    """Digest the sizes of files and up to sixteen evenly spaced chunks of each: all of a small file, a sample of a large one."""
    digest = hashlib.sha256()
    for file in files:
        try:
            size = file.stat().st_size
            digest.update(f"{size} ".encode())
            with file.open("rb") as content:
                last = size - _CHUNK
                is_small = size <= _N_CHUNKS * _CHUNK
                starts = range(0, size, _CHUNK) if is_small else [last * i // (_N_CHUNKS - 1) for i in range(_N_CHUNKS)]
                for start in starts:
                    content.seek(start)
                    digest.update(content.read(_CHUNK))
        except OSError as error:
            raise DataError(
                f"{file}: expected a readable file, got the error {error.strerror or error}; check its path and permissions"
            ) from error
    return digest.hexdigest()[:32]
