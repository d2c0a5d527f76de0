"""Updates of weights that are laid out in memory by columns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mtsae_lens.sae.sparse import column_major, is_column_major
from mtsae_lens.training.optimizer import update_in_memory_order


def weights(layout: Any = torch.clone) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((6, 4), (3, 5), (4,))
    values = [torch.randn(shape, generator=generator) for shape in shapes]
    return [nn.Parameter(layout(values[0])), *map(nn.Parameter, values[1:])]


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1, fused=True)


@pytest.mark.parametrize("first_gradient", [True, False])
def test_the_update_is_that_of_the_same_weight_by_rows(first_gradient: bool) -> None:
    by_columns, by_rows = weights(column_major), weights()
    optimizers = adamw(by_columns), adamw(by_rows)
    update_in_memory_order(optimizers[0])
    generator = torch.Generator().manual_seed(1)
    for step in range(4):
        for one, other in zip(by_columns, by_rows, strict=True):
            gradient = torch.randn(other.shape, generator=generator)
            has_gradient = step > 0 or first_gradient or other.ndim == 1
            other.grad = gradient if has_gradient else None
            one.grad = (column_major(gradient) if is_column_major(one) else gradient.clone()) if has_gradient else None
        for optimizer in optimizers:
            optimizer.step()
        assert is_column_major(by_columns[0])
        assert_close(by_columns, by_rows, rtol=0, atol=0)
    found, expected = (optimizer.state_dict()["state"] for optimizer in optimizers)
    assert_close(found, expected, rtol=0, atol=0)
    assert found[0]["exp_avg"].shape == (6, 4)


def test_the_fused_update_sees_contiguous_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = weights(column_major)
    optimizer = adamw(parameters)
    update_in_memory_order(optimizer)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.extend((p.is_contiguous(), p.grad.is_contiguous()) for p in parameters))
    parameters[0].grad = column_major(torch.ones(6, 4))
    for parameter in parameters[1:]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert seen == [(True, True)] * 3
