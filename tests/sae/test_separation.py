"""The separation loss on cases with known values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mtsae_lens.sae.separation import cosine_separation


def scales(*vectors: list[float], pos: int = 2) -> Tensor:
    return torch.tensor([[vectors] * pos], dtype=torch.float64)


def everywhere(z: Tensor) -> Tensor:
    return torch.ones(z.shape[:2], dtype=torch.bool)


@pytest.mark.parametrize(
    ("vectors", "expected"),
    [
        (([1.0, 0.0], [3.0, 0.0]), 1.0),
        (([1.0, 0.0], [0.0, 2.0]), 0.0),
        (([1.0, 0.0], [-1.0, 0.0]), 0.0),
        (([1.0, 0.0], [1.0, 1.0]), 0.5**0.5),
        (([1.0, 0.0], [1.0, 0.0], [0.0, 1.0]), 1 / 3),
        (([1.0, 0.0], [-2.0, 0.0], [5.0, 0.0]), 1 / 3),
        (([1.0, 0.0],), 0.0),
        (([0.0, 0.0], [1.0, 0.0]), 0.0),
    ],
    ids=["one", "orthogonal", "opposed", "half", "two-of-three", "opposition-does-not-pay", "single", "silent"],
)
def test_known_values(vectors: tuple[list[float], ...], expected: float) -> None:
    z = scales(*vectors)
    assert_close(cosine_separation(z, everywhere(z)), torch.tensor(expected, dtype=torch.float64))


def test_masked_positions_do_not_count() -> None:
    z = torch.cat([scales([1.0, 0.0], [1.0, 0.0], pos=3), scales([1.0, 0.0], [0.0, 1.0], pos=1)], dim=1)
    keep = torch.tensor([[True, False, False, True]])
    assert_close(cosine_separation(z, everywhere(z)).item(), 0.75)
    assert_close(cosine_separation(z, keep).item(), 0.5)
    z[:, 1:3] = torch.nan
    assert_close(cosine_separation(z, keep).item(), 0.5)
    assert cosine_separation(z, torch.zeros_like(keep)).item() == 0


def test_gradient_parts_the_scales() -> None:
    z = torch.randn(2, 6, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    before = cosine_separation(z, everywhere(z))
    before.backward()
    assert z.grad is not None
    assert cosine_separation(z - z.grad, everywhere(z)) < before
