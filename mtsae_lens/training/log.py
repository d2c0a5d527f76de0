"""The training log: one JSON object on each line, readable during the run, and continued after a resume."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from mtsae_lens.errors import DataError, OutputError
from mtsae_lens.files import write_bytes, write_text

LOG_FILE = "training_log.jsonl"


class TrainingLog:
    """Append rows to a JSONL file.

    Args:
        path: the file; None writes nothing.
        first_step: the step that the run starts or resumes at. Rows of later steps are dropped, because these steps are repeated.

    Raises:
        DataError: a row of the file is damaged.
    """

    def __init__(self, path: Path | None, first_step: int) -> None:
        self._file = None
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if first_step and path.exists():
            for number, line in enumerate(path.read_text(errors="replace").splitlines(keepends=True), 1):
                if not line.endswith("\n"):
                    break  # a killed process can leave half a line at the end; its step is repeated
                if _parse_row(path, number, line)["step"] <= first_step:
                    kept.append(line)
        write_text(path, "".join(kept))
        self._file = path.open("a")

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        """Write one row.

        Args:
            step: the training step.
            row: numbers by name; one that is not finite becomes null.

        Raises:
            OutputError: the file cannot be written.
        """
        if self._file is None:
            return
        clean = {key: value if math.isfinite(value) else None for key, value in row.items()}
        try:
            self._file.write(json.dumps({"step": step, **clean}) + "\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(
                f"{self._file.name}: expected to write the log, got {error.strerror}; free space and give --resume"
            ) from error

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk was reported when the row was written
                self._file.close()


def read_log(path: Path | str) -> list[dict[str, Any]]:
    """Read the rows of a training log.

    Args:
        path: the file.

    Returns:
        The rows in order.

    Raises:
        DataError: the file cannot be read, or a line is damaged.
    """
    path = Path(path)
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"{path}: expected a training log, got {error.strerror}; give the log of a run") from error
    return [_parse_row(path, number, line) for number, line in enumerate(lines, 1)]


def restore_log(path: Path, kept: Path) -> None:
    """Restore the rows up to a checkpoint if the log of the run no longer begins with them, with a warning.

    Args:
        path: the log of the run.
        kept: the copy of it in the checkpoint; older checkpoints have none.
    """
    if not kept.is_file():
        return
    rows, present = kept.read_bytes(), path.read_bytes() if path.is_file() else b""
    if not present.startswith(rows):
        print(f"warning: {path} was cut or changed; its rows were restored from {kept.parent}", file=sys.stderr)
        write_bytes(path, rows)


def _parse_row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            return row
    except (ValueError, RecursionError):
        pass
    raise DataError(
        f"{path}:{number}: expected a row of JSON with a step, got something else (damaged); delete that line and resume again"
    )
