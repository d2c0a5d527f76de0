"""Simulate a device: tensors that report `npu:0`, hold a CPU tensor, and refuse what a GPU refuses.

What it imitates:

- operations compute on the CPU and give what is on the device; `.cpu()`, `.item()`, `.tolist()` bring back, `.numpy()` raises;
- a tensor of the CPU beside one of the device raises. Exceptions, as on CUDA: numbers (no dimensions) in arithmetic, indices and masks of
  the CPU that index a tensor of the device, and copies;
- a generator of the CPU cannot draw on the device, which has a separate random state, seeded by `torch.manual_seed`;
- float64 raises, as on MPS: what runs here runs on both.

What it does not: memory, speed, copies that have not ended, several devices, pinned memory, autocast (nothing is cast), `torch.cuda`, other
rounding, kernels that are missing or not deterministic. `.to(device)` gives a module new parameters where CUDA keeps them, so tied weights
come apart. PyTorch leaves the name `npu` to others, and safetensors can load to it; it stays registered, but is there only within
`simulated_device()`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.utils.backend_registration as registration
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_leaves, tree_map

NAME = "npu"
_aten = torch.ops.aten
_COPIES = (_aten.copy_.default, _aten._to_copy.default)
_INDEXING = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default)
_FILLING = (_aten.fill_.Tensor, _aten.masked_fill.Tensor, _aten.masked_fill_.Tensor)
_LITERALS = (torch.tensor, torch.as_tensor, torch.asarray, torch.arange)


class _PassesForTensor(type(Tensor)):  # type: ignore[misc]
    """TransformerLens asks whether `type(x) == torch.Tensor`."""

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is Tensor

    def __hash__(cls) -> int:
        return hash(Tensor)


class OnDevice(Tensor, metaclass=_PassesForTensor):
    """A tensor on the device."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        with torch.inference_mode(mode=False):  # there a view of a parameter is no tensor of inference
            tensor = Tensor._make_wrapper_subclass(cls, inner.shape, device=torch.device(NAME, 0), **layout)
        tensor.inner = inner
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return Tensor.data.__get__(self)  # type: ignore[attr-defined]

    @data.setter
    def data(self, value: OnDevice) -> None:
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.inner = value.inner

    def __repr__(self, **options: Any) -> str:
        return f"OnDevice({self.inner!r})"

    def __format__(self, spec: str) -> str:
        return format(self.inner, spec)

    def tolist(self) -> Any:
        return self.inner.tolist()

    def untyped_storage(self) -> Any:  # safetensors looks for shared memory
        return self.inner.untyped_storage()


def compute(func: Any, args: Any, kwargs: Any) -> Any:
    """One operation: checked, done on the CPU, its results on the device unless they are asked for elsewhere."""
    leaves = tree_leaves((args, kwargs))
    stays = torch.device(kwargs.get("device") or NAME).type == NAME
    _check(func, args, leaves, stays)
    if func is _aten._fused_sdp_choice.default:
        return 0  # attention made of other operations
    if func is _aten.set_.source_Tensor:
        args[0].inner = args[1].inner
        return args[0]
    inner_args, inner_kwargs = tree_map(_inner, (args, kwargs))
    with _rng_of_device() if torch.Tag.nondeterministic_seeded in func.tags else contextlib.nullcontext():
        result = func(*inner_args, **inner_kwargs)
    if torch.Tag.inplace_view in func.tags:  # its shape has changed
        with no_dispatch():
            func(*args, **kwargs)
    given = {id(_inner(x)): x for x in leaves if isinstance(x, Tensor)}

    def outer(x: Any) -> Any:
        if not isinstance(x, Tensor) or id(x) in given or not stays:
            return given.get(id(x), x)
        if x.dtype == torch.float64:
            raise TypeError(f"{func} makes float64, which not every device has")
        return OnDevice(x)

    return tree_map(outer, result)


def _inner(x: Any) -> Any:
    if isinstance(x, torch.device):
        return torch.device("cpu") if x.type == NAME else x
    return x.inner if isinstance(x, OnDevice) else x


def _check(func: Any, args: Any, leaves: list[Any], stays: bool) -> None:
    if stays and any(isinstance(x, torch.Generator) for x in leaves):
        raise RuntimeError(f"{func}: expected a generator of {NAME}, found one of the CPU")
    strangers = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, OnDevice)]
    if func in _COPIES or not any(isinstance(x, OnDevice) for x in leaves):
        return
    if func in _INDEXING and isinstance(args[0], OnDevice):
        strangers = [x for x in args[2:3] if not isinstance(x, OnDevice) and x.ndim]
    elif torch.Tag.pointwise in func.tags or func in _FILLING:
        written = [x for x, argument in zip(args, func._schema.arguments, strict=False) if argument.is_write]
        strangers = [x for x in strangers if x.ndim or any(x is w for w in written)]
    if strangers:
        shapes = ", ".join(f"{x.device} {tuple(x.shape)}" for x in leaves if isinstance(x, Tensor))
        raise RuntimeError(f"{func}: expected all tensors on one device, found {shapes}")


class _Hook(registration._DummyPrivateUse1Hook):
    there = False

    def is_available(self) -> bool:
        return _Hook.there


class _Backend(registration._DummyBackendModule):
    """`torch.npu`."""

    rng = torch.Generator().get_state()

    def is_available(self) -> bool:
        return _Hook.there

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, device: Any = None) -> Tensor:
        return _Backend.rng

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        _Backend.rng = state

    def manual_seed_all(self, seed: int) -> None:
        _Backend.rng = torch.Generator().manual_seed(seed + 1).get_state()  # other numbers than on the CPU


@contextlib.contextmanager
def _rng_of_device() -> Iterator[None]:
    with torch.random.fork_rng(devices=()):
        torch.set_rng_state(_Backend.rng)
        yield
        _Backend.rng = torch.get_rng_state()


class _MadeOfNumbers(TorchFunctionMode):
    """Move tensors that torch makes from Python numbers to the device, because they are made on the CPU, below `__torch_dispatch__`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _LITERALS and torch.device(kwargs.get("device") or "cpu").type == NAME:
            made = func(*tree_map(_inner, args), **kwargs | {"device": "cpu"})
            return made.detach().to(NAME).requires_grad_(made.requires_grad)
        if func is Tensor.new_tensor and isinstance(args[0], OnDevice):
            return func(args[0].inner, *args[1:], **kwargs).to(NAME)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], OnDevice):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(i, dtype=None if i else torch.long) if isinstance(i, list) else i for i in index)
            args = (args[0], index, *args[2:])
        return func(*args, **kwargs)


_library: list[torch.library.Library] = []


def _register() -> None:
    registration._setup_privateuseone_for_python_backend(NAME, _Backend(), _Hook(), registration._DummyDeviceGuard())
    _library.append(torch.library.Library("_", "IMPL"))
    _library[0].fallback(lambda func, *args, **kwargs: compute(func, args, kwargs), "PrivateUse1")
    _library[0].fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")


@contextlib.contextmanager
def simulated_device() -> Iterator[str]:
    """The device's name, while it is there."""
    if not _library:
        _register()
    _Hook.there = True
    try:
        with torch.autograd.set_multithreading_enabled(False), _MadeOfNumbers():
            yield NAME
    finally:
        _Hook.there = False
