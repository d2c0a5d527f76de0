"""Test that every command that writes results refuses a folder in use, and leaves no empty folder after an error."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtsae_lens.output_folders import LOCK_FILE

COMMANDS = {
    "train": [],
    "evaluate": ["no-sae"],
    "explore": ["no-sae"],
    "unlearn": ["no-sae", "--forget", "kjv", "--retain", "sotu"],
    "unlearn-benchmark": [],
    "export": ["no-sae", "--edit", "no-edit.json"],
    "demo": [],
    "planted": [],
    "paper": [],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_another_process_writes(command: str, mtsae: Callable[..., Any], tmp_path: Path) -> None:
    host = os.uname().nodename
    lock = os.open(tmp_path / LOCK_FILE, os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)  # a lock belongs to the handle, so this process is as good as another
    os.write(lock, json.dumps({"pid": 4711, "host": host, "since": "2026-01-02 03:04:05"}).encode())
    try:
        outcome = mtsae(command, *COMMANDS[command], "--out", tmp_path)
    finally:
        os.close(lock)
    assert outcome.code == 2
    assert outcome.error.endswith(
        f"--out {tmp_path}: expected a free folder, got one that process 4711 on {host} since 2026-01-02 03:04:05 writes to; "
        "wait for it to end, or give another --out"
    )
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--hook-name", "blocks.3.hook_nowhere"],
        ["train", "--dataset", "kjw"],
        ["evaluate", "no-sae"],
        ["explore", "no-sae"],
        ["unlearn", "no-sae", "--forget", "kjv", "--retain", "sotu"],
        ["export", "no-sae", "--edit", "no-edit.json"],
        ["export-neuronpedia", "no-facts"],
    ],
    ids="-".join,
)
def test_a_failed_command_leaves_no_empty_folder(arguments: list[str], mtsae: Callable[..., Any], tmp_path: Path) -> None:
    outcome = mtsae(*arguments, "--out", tmp_path / "new" / "deep")
    assert outcome.code == 2
    assert list(tmp_path.iterdir()) == []
