"""Settings of `mtsae planted`. This module loads pydantic alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import Field

from mtsae_lens.settings import Settings


class PlantedCommandSettings(Settings):
    """Settings of `mtsae planted`."""

    out: Path = Path("runs/planted")
    """Folder for the trials, the metrics and the report."""
    n_seeds: int = Field(5, gt=0)
    """Number of dictionaries to compare the architectures on."""
    n_direction_seeds: int = Field(2, ge=0)
    """Number of dictionaries for the ablations. 0 skips the ablations."""
    n_steps: int = Field(3_000, gt=1)
    """Number of training steps of every SAE."""
    d_sae: int = Field(256, gt=0)
    """Number of features of every SAE."""
    planted: dict[str, Any] = Field(default_factory=dict)
    """Field of `PlantedConfig` to change what is planted, such as `d_in=32`, `durations=[1,8]` or `echo_magnitude=1.0`."""
    n_test_sequences: int = Field(128, gt=1)
    """Number of sequences in each of SELECT and TEST."""
    n_workers: int = Field(default_factory=lambda: min(4, os.cpu_count() or 1), gt=0)
    """Number of processes. Each process trains one small SAE at a time."""
