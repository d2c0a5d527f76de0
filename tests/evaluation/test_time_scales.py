"""Test the time scales of hand-made features."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.evaluation.time_scales import TemporalProfiles, mean_run_length, nearest_class, temporal_profiles

D_IN = 4


def sae_that_reads(*lags: int, **settings: Any) -> MTSAE:
    """Make an SAE whose feature i reads dimension i of the position `lags[i]` back, through scale 0 (the token) or dilation 4."""
    values: dict[str, Any] = {"d_in": D_IN, "d_sae": len(lags), "dilations": (0, 4), "activation": "relu", "context_gain": 1.0}
    sae = MTSAE(MTSAEConfig(**(values | {"scale_norm": "none", "context_size": 40, "dtype": "float64"} | settings)))
    sae.taps.data[0, 0] = 1
    for feature, lag in enumerate(lags):
        if lag:
            sae.taps.data[1, lag // 4, feature] = 1
        sae.W_enc.data[feature + (D_IN if lag else 0), feature] = 1
    return sae


@pytest.fixture
def h() -> torch.Tensor:
    return torch.randn(6, 40, D_IN, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_an_encoder_that_reads_one_lag(h: torch.Tensor) -> None:
    profiles = temporal_profiles(sae_that_reads(0, 4, 8), [h], torch.arange(3))
    assert profiles.offsets == (0, -4, -8)
    torch.testing.assert_close(profiles.shares, torch.eye(3), atol=1e-6, rtol=0)
    assert profiles.context_share.tolist() == pytest.approx([0, 1, 1])
    assert profiles.context_lag[1:].tolist() == pytest.approx([4, 8])
    assert profiles.context_lag[0].isnan()
    assert profiles.share_at([4]).tolist() == pytest.approx([0, 1, 0])
    assert profiles.share_at([4, 8, 5]).tolist() == pytest.approx([0, 1, 1])


@pytest.mark.parametrize("scale_norm", ["rescaled_layer_norm", "layer_norm"])
def test_a_norm_does_not_hide_the_lag(scale_norm: str, h: torch.Tensor) -> None:
    profiles = temporal_profiles(sae_that_reads(0, 4, 8, scale_norm=scale_norm), [h], torch.arange(3))
    assert profiles.shares.argmax(dim=1).tolist() == [0, 1, 2]
    assert profiles.shares.sum(dim=1).tolist() == pytest.approx([1, 1, 1])


def test_two_lags_share(h: torch.Tensor) -> None:
    """A feature that reads dimension 0 now and 4 positions back with equal weights takes half from each."""
    sae = sae_that_reads(0)
    sae.taps.data[1, 1, 0] = 1
    sae.W_enc.data[D_IN, 0] = 1
    profiles = temporal_profiles(
        sae, [h.repeat(8, 1, 1) * torch.tensor([1.0, -1.0]).repeat(24).view(-1, 1, 1)], torch.tensor([0])
    )
    assert profiles.shares[0].tolist() == pytest.approx([0.5, 0.5, 0], abs=0.06)
    assert profiles.context_share.item() == pytest.approx(0.5, abs=0.06)
    assert profiles.context_lag.item() == pytest.approx(4)


def test_by_its_definition(h: torch.Tensor) -> None:
    """Lift of an offset, from one regressor per offset; batches may come in parts, walls do not count."""
    torch.manual_seed(0)
    settings = {"dilations": (1, 2), "activation": "relu", "scale_norm": "none", "dtype": "float64"}
    sae = MTSAE(MTSAEConfig(d_in=D_IN, d_sae=5, context_size=40, **settings))
    for parameter in sae.parameters():
        parameter.data = torch.randn_like(parameter)
    h[:, 17] = 0
    profiles = temporal_profiles(sae, h.split(2), torch.tensor([2, 0]))
    keep = torch.ones(6, 40, dtype=torch.bool)
    keep[:, [0, 17]] = False
    feature_acts = sae.encode(h)[keep]
    pre = sae.run_with_cache(h, names_filter=["hook_sae_acts_pre"])[1]["hook_sae_acts_pre"][keep]
    active = feature_acts[:, [2, 0]] > 0
    assert profiles.n_active.tolist() == active.sum(dim=0).tolist()
    x = torch.nn.functional.pad(h - sae.b_dec, (0, 0, 4, 0))
    for place, feature in enumerate((2, 0)):
        lifts = []
        for number, offset in enumerate(sae.read_offsets):
            weight = sum(
                (sae.cfg.context_gain if scale else 1) * sae.filters[scale, number] * sae.W_enc[scale * D_IN :][:D_IN, feature]
                for scale in range(2)
            )
            blocked = torch.arange(40)
            crosses = (blocked + offset < 1) | ((blocked > 17) & (blocked + offset <= 17))
            adds = (x[:, 4 + offset : 44 + offset] @ weight).masked_fill(crosses, 0.0)[keep]
            lifts.append(adds[active[:, place]].mean() - adds.mean())
        whole = pre[:, feature][active[:, place]].mean() - pre[:, feature].mean()
        torch.testing.assert_close(torch.stack(lifts).sum(), whole)
        torch.testing.assert_close(profiles.shares[place].double(), torch.stack(lifts) / whole, atol=1e-5, rtol=1e-5)


def test_a_feature_that_never_fires_has_no_profile(h: torch.Tensor) -> None:
    sae = sae_that_reads(4, 4)
    sae.b_enc.data[1] = -1e9
    profiles = temporal_profiles(sae, [h], torch.arange(2))
    assert profiles.n_active[0] > 0
    assert profiles.n_active[1] == 0
    assert not profiles.shares[1].any()
    assert profiles.context_share[1] == 0


def test_context_lag_is_a_geometric_mean() -> None:
    shares = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.0, 0.5], [2.0, -1.0, 0.0]])
    profiles = TemporalProfiles((0, -2, -8), shares, torch.ones(3, dtype=torch.long))
    assert profiles.context_lag[:2].tolist() == pytest.approx([4, 8])
    assert profiles.context_lag[2].isnan()
    assert profiles.context_share.tolist() == pytest.approx([0.5, 0.5, 0])


def test_mean_run_length() -> None:
    active = torch.tensor(
        [
            [[1, 0, 1], [1, 0, 1], [0, 0, 1], [1, 0, 1]],
            [[0, 0, 1], [1, 0, 1], [1, 0, 1], [1, 0, 1]],
        ]
    ).bool()
    assert mean_run_length(active).tolist() == [2, 0, 4]


def test_nearest_class() -> None:
    classes = torch.tensor([1, 1, 8, 8, 64])
    calibration = torch.tensor([1.0, 4.0, 16.0, 64.0, 512.0])  # geometric means 2, 32, 512
    statistic = torch.tensor([0.0, 1.0, 7.9, 8.1, 100.0, 130.0, 1e9])
    assert nearest_class(statistic, calibration, classes).tolist() == [1, 1, 1, 8, 8, 64, 64]


def test_the_share_of_context_is_a_share() -> None:
    profiles = TemporalProfiles((0, -1, -2), torch.tensor([[-0.3, 0.8, 0.5], [0.9, 0.1, -0.0]]), torch.tensor([4, 4]))
    torch.testing.assert_close(profiles.context_share, torch.tensor([1.0, 0.1]))
