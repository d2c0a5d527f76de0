"""Compute independent trials in several processes of one machine, and end them on a signal."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch

from mtsae_lens.errors import TrainingInterrupted
from mtsae_lens.interruption import stop_on_signal
from mtsae_lens.ranks import current_ranks

T = TypeVar("T")
_POLL_SECONDS = 0.5  # longest delay of a signal while workers compute


def compute_in_workers(trials: Mapping[str, Callable[[], T]], n_workers: int) -> Iterator[tuple[str, T]]:
    """Compute trials in several processes and yield results as they arrive. A signal ends the processes at once.

    Args:
        trials: picklable functions, by name.
        n_workers: number of processes, which share the threads.

    Yields:
        The name of a trial and its result.

    Raises:
        TrainingInterrupted: a signal arrived.
    """
    n_threads = max(1, (os.cpu_count() or 1) // (n_workers * current_ranks().local_size))
    gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else None
    others = set(multiprocessing.active_children())
    spawn = multiprocessing.get_context("spawn")  # a fork would share torch's threads
    with (
        _quiet_progress(),
        stop_on_signal() as stop,
        ProcessPoolExecutor(n_workers, spawn, _start_worker, (n_threads, gpu)) as pool,
    ):
        names = {pool.submit(trial): name for name, trial in trials.items()}
        pending = set(names)
        try:
            while pending:
                done, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                if stop.signal_number is not None:
                    # a worker that is asked to stop would finish its trial and start the next; a trial has no state to save
                    for worker in set(multiprocessing.active_children()) - others:
                        worker.kill()
                    raise TrainingInterrupted(stop.signal_number, "")
                for future in done:
                    yield names[future], future.result()
        except BaseException:
            # otherwise the pool would first run all remaining trials
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker(n_threads: int, gpu: int | None) -> None:
    torch.set_num_threads(n_threads)
    if gpu is not None:
        torch.cuda.set_device(gpu)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides


@contextmanager
def _quiet_progress() -> Iterator[None]:
    """Disable the progress bars of workers, which inherit the environment and would overwrite the parent's bar."""
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = before
