"""Large tensors in the memory of a CPU, in pages of 2 MB.

The feature activations of 2,048 positions and 4,096 features take 32 MB. torch gets such a tensor fresh from the system, page by page of
4 kB, and gives it back at once, so every one of them costs as much as five passes over it. numpy asks the system for large pages, where it has
them, and torch computes in the same memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_LARGE = 2**22
"""Bytes of a tensor from which numpy asks for large pages."""

_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


def make_empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """Make a tensor whose values are not set.

    Args:
        shape: its shape.
        like: a tensor of the same dtype and device.
    """
    if not _is_large(shape, like):
        return like.new_empty(*shape)
    return torch.from_numpy(np.empty(tuple(shape), dtype=_NUMPY[like.dtype]))


def make_zeros(shape: Sequence[int], like: Tensor) -> Tensor:
    """Make a tensor of zeros.

    Args:
        shape: its shape.
        like: a tensor of the same dtype and device.
    """
    if not _is_large(shape, like):
        return like.new_zeros(*shape)
    return torch.from_numpy(np.zeros(tuple(shape), dtype=_NUMPY[like.dtype]))


def _is_large(shape: Sequence[int], like: Tensor) -> bool:
    on_cpu = like.device.type == "cpu" and like.dtype in _NUMPY and not torch.compiler.is_compiling()
    return on_cpu and torch.Size(shape).numel() * like.element_size() >= _LARGE
