"""Write and check lists of the SHA-256 digests of a folder's files, in the format of `sha256sum --check`. A folder without a list is
not checked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mtsae_lens.digests import digest_file
from mtsae_lens.errors import DataError
from mtsae_lens.files import write_text

CHECKSUMS_FILE = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")  # other lines, such as those of another tool, are ignored


def write_checksums(folder: Path, patterns: Sequence[str] = ("**/*",)) -> None:
    """Write the list of a folder's files into the folder.

    Args:
        folder: a folder whose files are complete.
        patterns: patterns of the files to list, as `Path.glob` takes them.
    """
    files = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    listed = sorted({path.relative_to(folder).as_posix() for path in files} - {CHECKSUMS_FILE})
    write_text(folder / CHECKSUMS_FILE, "".join(f"{digest_file(folder / name)}  {name}\n" for name in listed))


def check_checksums(folder: Path, remedy: str) -> None:
    """Compare the files of a folder with the list in it, if it has one.

    Args:
        folder: the folder to check.
        remedy: what the user should do if a file is damaged.

    Raises:
        DataError: a listed file is missing, or its content has changed since the list was written.
    """
    path = folder / CHECKSUMS_FILE
    if not path.is_file():
        return
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        listed = {match[2]: match[1] for match in map(_LINE.fullmatch, lines) if match}
        for name, digest in listed.items():
            if digest_file(folder / name) != digest:
                raise DataError(
                    f"{folder / name}: expected the content listed in {CHECKSUMS_FILE}, got other content (the file is damaged); {remedy}"
                )
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{folder}: expected readable files, got {type(error).__name__}: {error} (damaged); {remedy}"
        ) from error
