"""The convolution of gathered rows is that of sequences, and so are its gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mtsae_lens.sae.gathered import convolve_gathered
from mtsae_lens.sae.temporal import find_walls, temporal_convolution


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("used", [[[0], [0, 1], [0, 2]], [[0, 1, 2]] * 3], ids=["fixed", "learned"])
def test_gathered_rows_are_convolved_with_the_same_gradients(used: list[list[int]]) -> None:
    is_used = torch.tensor([[place in places for place in range(3)] for places in used]).unsqueeze(-1)
    h, filters, center = randn(7, 3, 4), randn(3, 3, 4) * is_used, randn(4)
    h[2, 1] = h[4] = 0
    walls, results = find_walls(h), []
    for gathered in (True, False):
        weights = [filters.clone().requires_grad_(), center.clone().requires_grad_()]
        if gathered:
            out = convolve_gathered(h, walls, weights[1], weights[0], used)
        else:
            x = (h - weights[1]).masked_fill(walls.unsqueeze(-1), 0.0)
            out = temporal_convolution(dict(enumerate(x.unbind(dim=1))), weights[0], used)
        results.append((out.detach(), *torch.autograd.grad((out * randn(7, 3, 4).sin()).sum(), weights)))
    assert_close(*results)
    assert all(part.any() for part in results[0])
