"""Test that provenance describes how a result was made, and that metrics are written whole."""

from __future__ import annotations

import errno
import json
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from mtsae_lens.errors import OutputError
from mtsae_lens.records import METRICS_FILE, Stopwatch, provenance, write_metrics


def test_provenance_gives_a_command_that_can_be_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/mtsae", "train", "--out", "a b", "--set", "dilations=[1, 2]"])
    made = provenance(3, 1.5, {"lr": 0.1})
    assert shlex.split(made["command"]) == ["mtsae", *sys.argv[1:]]
    assert (made["seed"], made["seconds"], made["settings"]) == (3, 1.5, {"lr": 0.1})
    assert made["versions"]["sae-lens"] == version("sae-lens")
    assert {"mtsae-lens", "torch", "transformer-lens", "transformers", "python"} <= set(made["versions"])
    assert time.strptime(made["date"], "%Y-%m-%d")
    json.dumps(made, allow_nan=False)


def test_write_metrics(tmp_path: Path) -> None:
    path = write_metrics(tmp_path, {"a": [1, 2.5, None]})
    assert path == tmp_path / METRICS_FILE
    assert json.loads(path.read_text()) == {"a": [1, 2.5, None]}


def test_write_metrics_on_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match=r"metrics\.json: expected to write this file"):
        write_metrics(tmp_path, {"a": 1})
    assert list(tmp_path.iterdir()) == []


def test_stopwatch(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 12.345])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    assert Stopwatch().seconds == 2.3
