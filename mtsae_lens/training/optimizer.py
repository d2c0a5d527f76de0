"""AdamW on weights that are laid out in memory by columns.

torch's fused AdamW first copies a gradient that is not contiguous, which takes longer than the update itself. For the time of an update a
column-major weight is therefore replaced by its transpose, which is contiguous: the update is the same for every element.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mtsae_lens.sae.sparse import is_column_major


def update_in_memory_order(optimizer: torch.optim.Optimizer) -> None:
    """Make an optimizer that treats every element alike update column-major weights as their transposes.

    Between updates weights, gradients and the state of the optimizer have their own shapes.

    Args:
        optimizer: the optimizer; it gets a hook before and one after each step.
    """
    turned: list[nn.Parameter] = []

    def before(*_: Any) -> None:
        for group in optimizer.param_groups:
            turned.extend(p for p in group["params"] if p.grad is not None and is_column_major(p) and is_column_major(p.grad))
        for parameter in turned:
            _transpose_(optimizer, parameter)

    def after(*_: Any) -> None:
        while turned:
            _transpose_(optimizer, turned.pop())

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def _transpose_(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> None:
    gradient, parameter.grad = parameter.grad, None  # a gradient must have the shape of its weight
    parameter.data = parameter.data.T
    assert gradient is not None
    parameter.grad = gradient.T
    state = optimizer.state[parameter]
    for name, value in state.items():
        if torch.is_tensor(value) and value.ndim == 2:
            state[name] = value.T
