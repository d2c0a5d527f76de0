"""The training log: one JSON object a line, readable while the run goes on, and continued cleanly after a resume."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mtsae_lens.errors import DataError, OutputError
from mtsae_lens.files import write_text


class TrainingLog:
    """Appends rows to a JSONL file; rows of steps that will be made again are dropped on opening."""

    def __init__(self, path: Path | None, first_step: int) -> None:
        self._file = None
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if first_step and path.exists():
            for number, line in enumerate(path.read_text(errors="replace").splitlines(keepends=True), 1):
                if not line.endswith("\n"):
                    break  # a kill can leave half a line at the end; the step it was about is made again
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(f"{path}:{number}: damaged; delete that line and resume again") from error
                if row["step"] <= first_step:
                    kept.append(line)
        write_text(path, "".join(kept))
        self._file = path.open("a")

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        """Write one row; what is not a finite number becomes null."""
        if self._file is None:
            return
        clean = {key: value if math.isfinite(value) else None for key, value in row.items()}
        try:
            self._file.write(json.dumps({"step": step, **clean}) + "\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(
                f"{self._file.name}: cannot be written ({error.strerror}); free space and use --resume"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk was reported when the row was written
                self._file.close()


def read_log(path: Path | str) -> list[dict[str, Any]]:
    """The rows of a training log."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]
