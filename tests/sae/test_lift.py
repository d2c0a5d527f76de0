"""Test the lift by scale and offset against averaged contributions, and that a broken variant, which misses a part, is detected."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.sae.contributions import offset_contributions, scale_contributions, tap_parts
from mtsae_lens.sae.lift import Lift, share_of_context


def some_sae(**settings: Any) -> MTSAE:
    torch.manual_seed(0)
    sae = MTSAE(MTSAEConfig(**({"d_in": 6, "d_sae": 10, "k": 3, "context_size": 20, "dtype": "float64"} | settings)))
    for parameter in sae.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    sae.b_enc.data[9] = -1e9  # never fires
    return sae


def activations() -> torch.Tensor:
    h = torch.randn(8, 20, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    h[:, 0] = h[3, 11] = 0
    return h


def lift_of(sae: MTSAE, h: torch.Tensor, broken: bool = False) -> Lift:
    lift = Lift(sae)
    for batch in h.split(3):
        x, walls = sae.read_contexts(batch)
        rows, features = (sae.encode(batch).flatten(0, 1) > 0).nonzero().unbind(1)
        parts = list(tap_parts(sae, x, walls))
        if broken:
            parts[0] = dataclasses.replace(parts[0], vector=0 * parts[0].vector)
        lift.add(parts, ~walls, rows, features)
    return lift


SETTINGS = [
    {},
    {"scale_norm": "layer_norm", "dilations": (1, 3)},
    {"scale_norm": "none", "padding": "zero"},
    {"learn_dilations": True, "dilations": (0, 2)},
    {"context_rank": 4},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_shares_are_contributions_averaged(settings: dict[str, Any]) -> None:
    sae, h = some_sae(**settings), activations()
    lift, features = lift_of(sae, h), torch.arange(10)
    kept = ~sae.read_contexts(h)[1]
    fires = sae.encode(h)[kept] > 0
    for shares, contributions in ((lift.scale_shares, scale_contributions), (lift.offset_shares, offset_contributions)):
        parts = contributions(sae, h, features)[kept]
        for feature in range(9):
            expected = parts[fires[:, feature], :, feature].mean(0) - parts[:, :, feature].mean(0)
            assert expected.sum() > 0
            assert_close(shares[feature], expected / expected.sum())
        assert not shares[9].any()
    with pytest.raises(AssertionError):  # a tap is missing
        assert_close(lift_of(sae, h, broken=True).scale_shares, lift.scale_shares)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_parts_sum_to_the_scales(settings: dict[str, Any]) -> None:
    sae = some_sae(**settings)
    x, walls = sae.read_contexts(activations())
    z = torch.zeros(*x.shape[:2], len(sae.cfg.dilations), 6, dtype=torch.float64)
    for part in tap_parts(sae, x, walls):
        z[:, :, part.scale] += part.vector
    assert_close(z, sae.encode_scales(x, walls))


def test_share_of_context() -> None:
    shares = torch.tensor([[0.5, 0.25, 0.25], [1.2, -0.4, 0.2], [-0.5, 0.5, 1.0]])
    assert share_of_context(shares, [0, -1, -2]).tolist() == pytest.approx([0.5, 0.2, 1.0])
