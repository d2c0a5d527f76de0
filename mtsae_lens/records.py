"""What a command found out, with all that is needed to find it again."""

from __future__ import annotations

import platform
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mtsae_lens.files import write_json
from mtsae_lens.machine_paths import shorten, shorten_names, shorten_settings

METRICS_FILE = "metrics.json"
_PACKAGES = ("mtsae-lens", "torch", "sae-lens", "transformer-lens", "transformers")


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Rounded to a tenth: the rest is noise."""
        return round(time.monotonic() - self._start, 1)


def provenance(seed: int, seconds: float, settings: dict[str, Any]) -> dict[str, Any]:
    """Return command, seed, settings, versions, machine and time of a result; no absolute path of the machine is among them."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *map(shorten, sys.argv[1:])]),
        "seed": seed,
        "settings": shorten_settings(settings),
        "versions": {package: version(package) for package in _PACKAGES} | {"python": platform.python_version()},
        "machine": f"{platform.system()} {platform.machine()}",
        "date": time.strftime("%Y-%m-%d"),
        "seconds": seconds,
    }


def write_metrics(out: Path, metrics: dict[str, Any]) -> Path:
    """Write `metrics.json` into a folder, whole or not at all; corpora that are absolute paths are named by short ones."""
    path = out / METRICS_FILE
    write_json(path, shorten_names(metrics))
    return path
