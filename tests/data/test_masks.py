"""zero_rows on activations of every shape."""

from __future__ import annotations

import pytest
import torch

from mtsae_lens.data.masks import zero_rows


@pytest.mark.parametrize("width", [(), (3,), (2, 3)], ids=str)
def test_rows_are_zero_where_the_mask_says(width: tuple[int, ...]) -> None:
    h, where = torch.rand(2, 4, *width) + 1, torch.tensor([[True, False, False, True], [False] * 4])
    before = h.clone()
    zeroed = zero_rows(h, where)
    assert (zeroed[where] == 0).all()
    assert zeroed[~where].equal(h[~where])
    assert h.equal(before)


def test_not_even_infinity_is_left() -> None:
    h = torch.full((1, 2, 3), float("inf"))
    assert zero_rows(h, torch.tensor([[True, False]]))[0, 0].tolist() == [0.0, 0.0, 0.0]
