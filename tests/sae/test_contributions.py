"""Test contributions on small cases worked out by hand. That they sum to the pre-activation is a law (`tests/laws.py`)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.errors import ConfigError
from mtsae_lens.sae.contributions import offset_contributions, scale_contributions


def by_hand(**settings: Any) -> MTSAE:
    """Make an SAE of one dimension and one feature: scale 0 reads the token, scale 1 twice the token and three times the position 2 back."""
    values: dict[str, Any] = {"d_in": 1, "d_sae": 1, "k": 1, "dilations": (0, 2), "kernel_size": 2, "context_size": 6}
    sae = MTSAE(MTSAEConfig(**(values | {"scale_norm": "none", "skip_first_position": False, "dtype": "float64"} | settings)))
    sae.taps.data = torch.tensor([[[1.0], [0.0]], [[2.0], [3.0]]], dtype=torch.float64)
    sae.W_enc.data = torch.tensor([[5.0], [7.0]], dtype=torch.float64)
    sae.b_enc.data += 11
    return sae


H = torch.tensor([1.0, 10.0, 100.0, 1000.0, 0.0, 10000.0], dtype=torch.float64).view(1, 6, 1)


@pytest.mark.parametrize("gain", [1.0, 0.5])
def test_by_hand(gain: float) -> None:
    sae = by_hand(context_gain=gain)
    scales = scale_contributions(sae, H, torch.tensor([0]))[0, :, :, 0]
    offsets = offset_contributions(sae, H, torch.tensor([0]))[0, :, :, 0]
    assert sae.read_offsets == [0, -2]
    # position 5 cannot read position 3 through the wall at 4
    past = torch.tensor([0.0, 0.0, 1.0, 10.0, 0.0, 0.0], dtype=torch.float64)
    own = H[0, :, 0]
    assert_close(scales, torch.stack([5 * own, gain * 7 * (2 * own + 3 * past)], dim=1))
    assert_close(offsets, torch.stack([5 * own + gain * 7 * 2 * own, gain * 7 * 3 * past], dim=1))


@pytest.mark.parametrize("contributions", [scale_contributions, offset_contributions])
def test_shapes_and_no_gradient(contributions: Any) -> None:
    sae = MTSAE(MTSAEConfig(d_in=4, d_sae=9, k=2, context_size=6))
    found = contributions(sae, torch.randn(3, 6, 4), torch.tensor([8, 1]))
    n = len(sae.cfg.dilations) if contributions is scale_contributions else len(sae.read_offsets)
    assert found.shape == (3, 6, n, 2)
    assert not found.requires_grad
    assert contributions(sae, torch.randn(12, 4), torch.tensor([0])).shape == (2, 6, n, 1)


def test_features_are_the_chosen_ones() -> None:
    torch.manual_seed(0)
    sae = MTSAE(MTSAEConfig(d_in=4, d_sae=9, k=2, context_size=6))
    for parameter in sae.parameters():
        parameter.data = torch.randn_like(parameter)
    h, chosen = torch.randn(2, 6, 4), torch.tensor([7, 2])
    for contributions in (scale_contributions, offset_contributions):
        assert_close(contributions(sae, h, chosen), contributions(sae, h, torch.arange(9))[..., chosen])


@pytest.mark.wrong_shapes
@pytest.mark.parametrize("contributions", [scale_contributions, offset_contributions])
@pytest.mark.parametrize("features", [3, [9], [-1]], ids=str)
def test_features_that_the_sae_lacks_are_refused(contributions: Any, features: Any) -> None:
    sae = MTSAE(MTSAEConfig(d_in=4, d_sae=9, k=2, context_size=6))
    with pytest.raises(ConfigError, match="indices from 0 to 8"):
        contributions(sae, torch.randn(3, 6, 4), features)
