"""Stamp the local files that a text or a model is read from, so that cached results are not reused after the files changed.

A stamp is a digest of the name, size and modification time of every file that is read. Like `make` and `rsync`, it trusts sizes and times,
because reading a whole corpus or model to compare it would cost as much as using it. Sources that are not local (embedded, generated,
on the hub) have no stamp.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from mtsae_lens.assets import EMBEDDED_MODELS
from mtsae_lens.data.bridges import BRIDGE_PREFIX
from mtsae_lens.data.documents import EMBEDDED
from mtsae_lens.data.folders import files_in
from mtsae_lens.data.sources import parse_part, source_parts


def text_stamps(*sources: str) -> dict[str, str]:
    """Return the stamps of local text sources (`mtsae_lens.data.documents`), under the keys `contents of SOURCE`."""
    parts = dict.fromkeys(part for source in sources for part in source_parts(source))
    paths = {part: parse_part(part).path for part in parts if part != EMBEDDED}
    return {f"contents of {part}": _stamp(files_in(path)) for part, path in paths.items() if path is not None}


def model_stamps(*names: str | None) -> dict[str, str]:
    """Return the stamps of local language models (`mtsae_lens.data.language_models`), under the keys `contents of FOLDER`; None is
    skipped.
    """
    folders = dict.fromkeys(name.removeprefix(BRIDGE_PREFIX) for name in names if name)
    local = [folder for folder in folders if folder not in EMBEDDED_MODELS and Path(folder).is_dir()]
    return {f"contents of {folder}": _stamp(file for file in Path(folder).iterdir() if file.is_file()) for folder in local}


def _stamp(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in sorted(files):
        about = file.stat()
        digest.update(f"{file.name} {about.st_size} {about.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
