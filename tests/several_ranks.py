"""Run a function on several ranks of this machine."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from mtsae_lens.errors import MTSAEError, TrainingInterrupted
from mtsae_lens.ranks import joined_ranks


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def on_ranks(n: int, folder: Path, work: Callable[[], None]) -> list[tuple[int, str]]:
    """Run a function on several ranks, each a fork of this process; gives back the exit code of each, and what it raised."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()

    def begin(rank: int) -> None:
        torch.set_num_threads(1)
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in numbers.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "TOKENIZERS_PARALLELISM": "false"}
        code = 0
        try:
            with joined_ranks():
                work()
        except (MTSAEError, TrainingInterrupted) as error:
            (folder / f"error{rank}").write_text(str(error))
            code = 2
        except SystemExit as silent:
            code = int(silent.code or 0)
        except BaseException:
            (folder / f"error{rank}").write_text(traceback.format_exc())
            code = 1
        os._exit(code)

    processes = [multiprocessing.get_context("fork").Process(target=begin, args=(rank,)) for rank in range(n)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
    errors = [folder / f"error{rank}" for rank in range(n)]
    return [
        (process.exitcode or 0, error.read_text() if error.exists() else "")
        for process, error in zip(processes, errors, strict=True)
    ]
