"""Several processes that do one piece of work together, the ranks of `torchrun`, on `torch.distributed`: gloo on CPUs, NCCL on GPUs.

A rank that is alone takes part in nothing, so code that asks `current_ranks()` needs no other way for one process. Only the first rank
writes: the others have no output folder, and what they print is dropped.

Gradients are added up by `all_reduce` and not by `DistributedDataParallel`. A step may be dense on one rank and sparse on another, and the
loss of a rank is weighted by its number of rows, which it knows after its forward pass. `DistributedDataParallel` would also keep a second
copy of all gradients.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import wraps
from threading import Event, current_thread, main_thread
from types import FrameType
from typing import Any, NoReturn, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtsae_lens.errors import ConfigError, MTSAEError, TrainingInterrupted

P = ParamSpec("P")
T = TypeVar("T")
_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_USER_ERROR = 2  # the exit code of the command line
_LONGEST_WAIT = timedelta(days=365)  # one rank may compute for days while another one waits
_POLL_SECONDS = 0.02
_END_WITHIN = 2.0  # seconds, in which the other ranks ask who tells an error, or leave too
_LOST = (
    "a rank ended before the others, and the run ends with it; its own message says why. What was saved is kept: type the same command again, "
    "mtsae train with --resume, with any number of ranks"
)
_lost = Event()  # set once another rank has ended


class RankLostError(MTSAEError, RuntimeError):
    """Another rank has ended, so this one cannot go on."""


def _ends_with_the_others(collective: Callable[P, T]) -> Callable[P, T]:
    """Decorate a method that waits for other ranks, so that it raises `RankLostError` where one of them has ended."""

    @wraps(collective)
    def call(*arguments: P.args, **options: P.kwargs) -> T:
        try:
            return collective(*arguments, **options)
        except RuntimeError as error:
            _lost.set()
            raise RankLostError(_LOST) from error

    return call


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those that work together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """The place of this process among those on its machine."""
    local_size: int = 1
    """The number of processes on its machine."""
    waiting: dist.ProcessGroup | None = field(default=None, repr=False, compare=False)
    """Carries `wait_for_all`, without a limit of time."""

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there is only one process."""
        return self.size == 1

    def share(self, n: int) -> range:
        """Return this rank's part of `n` things in a row; parts differ by one at most."""
        return range(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def deal(self, things: Sequence[T]) -> Sequence[T]:
        """Return every `size`-th of some things, from that of this rank's number."""
        return things[self.rank :: self.size]

    def local_device(self, device: str) -> str:
        """Return the device of this rank: each rank on a machine has a separate GPU.

        Raises:
            ConfigError: the device names one GPU for all ranks.
        """
        if self.is_alone or not device.startswith("cuda"):
            return device
        if device != "cuda":
            raise ConfigError(f"expected device cuda with {self.size} ranks, got {device} for all; give --device cuda")
        return f"cuda:{self.local_rank}"

    @_ends_with_the_others
    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace a contiguous tensor by its sum over the ranks, and return it."""
        if not self.is_alone:
            dist.all_reduce(tensor)
        return tensor

    @_ends_with_the_others
    def sum_gradients_(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients of some weights by their sums over the ranks."""
        if self.is_alone:
            return
        pending = []
        for parameter in parameters:
            if not parameter.requires_grad:
                continue
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            if grad.stride() != parameter.stride():  # a layout that another rank need not have
                grad = torch.empty_like(parameter).copy_(grad)
            parameter.grad = grad
            pending.append(dist.all_reduce(grad.as_strided((grad.numel(),), (1,)), async_op=True))
        for work in pending:
            work.wait()

    def mean_row(self, row: Mapping[str, Any], weight: float) -> dict[str, Any]:
        """Average the numbers of a row over the ranks. Whole numbers are the same on all ranks and stay as they are.

        Args:
            row: numbers by name, with the same names on all ranks.
            weight: of this rank; the weights add up to 1.
        """
        if self.is_alone:
            return dict(row)
        names = sorted(name for name, value in row.items() if not isinstance(value, int))
        means = self.sum_(torch.tensor([float(row[name]) * weight for name in names], dtype=torch.float64))
        return dict(row) | dict(zip(names, means.tolist(), strict=True))

    def concatenate(self, part: Tensor, n: int) -> Tensor:
        """Return the parts of all ranks on each rank.

        Args:
            part: this rank's `share(n)`, along the first dimension.
            n: length of the whole.
        """
        whole = part.new_zeros(n, *part.shape[1:])
        whole[self.share(n).start : self.share(n).stop] = part
        return self.sum_(whole)

    @_ends_with_the_others
    def wait_for_all(self) -> None:
        """Wait until every rank has come here, for days if need be. A signal interrupts the wait."""
        if self.is_alone:
            return
        work = dist.all_reduce(torch.zeros(1), group=self.waiting, async_op=True)
        while not work.is_completed():
            time.sleep(_POLL_SECONDS)  # in `work.wait()` Python would not see a signal
        work.wait()

    @_ends_with_the_others
    def copy_from_first_(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by those of the first rank."""
        if self.is_alone:
            return
        for tensor in tensors:
            given = tensor.detach().clone(memory_format=torch.contiguous_format)
            dist.broadcast(given, src=0)
            tensor.detach().copy_(given)

    @_ends_with_the_others
    def tell(self, value: Any) -> Any:
        """Return what the first rank gives, on all ranks.

        Args:
            value: anything that JSON holds; only that of the first rank counts.
        """
        if self.is_alone:
            return value
        told = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
        length = torch.tensor(len(told))
        dist.broadcast(length, src=0)
        if not self.is_first:
            told = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(told, src=0)
        return json.loads(bytes(told.tolist()))

    @_ends_with_the_others
    def agree_to_stop(self, signal_number: int | None) -> int | None:
        """Return a signal that any rank has received, on all ranks, so that all stop after the same step."""
        if self.is_alone:
            return signal_number
        number = torch.tensor(signal_number or 0)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return int(number) or None


_joined = [Ranks()]


def current_ranks() -> Ranks:
    """Return the ranks that this process has joined; one rank alone outside `joined_ranks`."""
    return _joined[-1]


@contextmanager
def working_alone() -> Iterator[None]:
    """Let this process take part in nothing for a `with` block, to do work that the other ranks do not share in, such as a whole training."""
    _joined.append(Ranks())
    try:
        yield
    finally:
        _joined.pop()


@contextmanager
def joined_ranks(device: str = "cpu") -> Iterator[Ranks]:
    """Join the other processes that `torchrun` started, for a `with` block. Without `torchrun` this process is alone.

    An error of several ranks is raised on the first one to meet it. The others exit without a word.

    Args:
        device: on `cuda`, NCCL carries tensors on GPUs.

    Raises:
        ConfigError: the environment is not that of `torchrun`, or the other processes cannot be reached.
        RankLostError: another rank has ended.
    """
    size = _world_size()
    if size == 1:
        yield current_ranks()
        return
    ranks = Ranks(
        int(os.environ["RANK"]), size, int(os.environ["LOCAL_RANK"]), int(os.environ.get("LOCAL_WORLD_SIZE", "").strip() or 1)
    )
    uses_cuda = ranks.local_device(device).startswith("cuda")
    store = _connect(uses_cuda)
    ranks = replace(ranks, waiting=dist.new_group(backend="gloo", timeout=_LONGEST_WAIT))
    _joined.append(ranks)
    try:
        with _sigterm_passed_over_when_lost(), _silenced(not ranks.is_first):
            if uses_cuda:
                _choose_gpu(ranks)
            yield ranks
        _leave_together(store)
    except TrainingInterrupted as error:
        if _lost.is_set():  # the signal is that of torchrun, which ends all ranks when one of them has ended
            _raise_or_exit(RankLostError(_LOST), store)
        _leave_together(store)
        if not ranks.is_first:
            raise SystemExit(128 + error.signal_number) from error
        raise
    except MTSAEError as error:
        _raise_or_exit(error, store)
    finally:
        _joined.pop()
        if sys.exc_info()[0] is None or not uses_cuda:  # NCCL would wait for ranks that have ended
            dist.destroy_process_group()


def _world_size() -> int:
    """Read the number of ranks from the environment."""
    if os.environ.get("WORLD_SIZE", "1") == "1" and os.environ.get("RANK", "0") == "0":
        return 1
    missing = [name for name in _NEEDED if not os.environ.get(name, "").strip()]
    numbers = [os.environ.get(name, "") for name in _NEEDED if name != "MASTER_ADDR"]
    if missing or not all(number.isdecimal() for number in numbers):
        wrong = f"no {', '.join(missing)}" if missing else "a value that is no number"
        raise ConfigError(
            f"expected {', '.join(_NEEDED)} in the environment, as torchrun sets them, got {wrong}; start with torchrun "
            "--nproc-per-node N -m mtsae_lens.cli train, or unset RANK and WORLD_SIZE"
        )
    return int(os.environ["WORLD_SIZE"])


def _connect(uses_cuda: bool) -> dist.Store:
    """Open the process group, and return the store that all ranks share."""
    try:
        store, rank, size = next(iter(dist.rendezvous("env://")))
        backend = "cpu:gloo,cuda:nccl" if uses_cuda else "gloo"
        dist.init_process_group(backend, store=dist.PrefixStore("mtsae", store), rank=rank, world_size=size)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ConfigError(
            f"expected all ranks to meet at {place}, got {type(error).__name__} ({reason}); check MASTER_ADDR and MASTER_PORT, or "
            "--rdzv-endpoint of torchrun"
        ) from error
    return store


def _choose_gpu(ranks: Ranks) -> None:
    """Make `cuda` the GPU of this rank."""
    n_gpus = torch.cuda.device_count()
    if ranks.local_rank >= n_gpus:
        raise ConfigError(
            f"expected a GPU for each rank of a machine, got {n_gpus} for rank {ranks.local_rank + 1}; give torchrun --nproc-per-node "
            f"{max(n_gpus, 1)}, or --device cpu"
        )
    torch.cuda.set_device(ranks.local_rank)


def _raise_or_exit(error: MTSAEError, store: dist.Store) -> NoReturn:
    """Raise an error, or exit without a word if another rank has raised one."""
    try:
        is_first = store.add("mtsae_errors", 1) == 1
    except RuntimeError:  # nobody can be asked
        is_first = True
    if is_first:
        _let_others_ask(store)
        raise error
    raise SystemExit(_USER_ERROR) from error


def _let_others_ask(store: dist.Store) -> None:
    """Wait a little for the other ranks to ask who tells the error: the store may be in this process, and end with it."""
    _wait_for_count(store, "mtsae_errors")


def _leave_together(store: dist.Store) -> None:
    """Wait a little for the other ranks to leave too: a rank that ends closes its connections, and fails a collective that others finish."""
    with suppress(RuntimeError):
        store.add("mtsae_leaving", 1)
    _wait_for_count(store, "mtsae_leaving")


def _wait_for_count(store: dist.Store, name: str) -> None:
    """Wait until every rank has added 1 to a number in the store, but not for long."""
    deadline = time.monotonic() + _END_WITHIN
    with suppress(RuntimeError):
        while store.add(name, 0) < dist.get_world_size() and time.monotonic() < deadline:
            time.sleep(0.05)


@contextmanager
def _sigterm_passed_over_when_lost() -> Iterator[None]:
    """Let this process end by itself, with its message, where `torchrun` sends SIGTERM because another rank has ended.

    After an error the handler stays, because the message is still to be printed.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if not _lost.is_set():
            raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, handle) if current_thread() is main_thread() else None
    yield
    if previous is not None:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def _silenced(silent: bool) -> Iterator[None]:
    """Drop what is written to standard output and error, bars included."""
    if not silent:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield
