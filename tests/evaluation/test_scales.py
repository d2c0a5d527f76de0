"""Test the R^2 of features by scale against least squares."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.evaluation.scales import ScalePredictivity, scale_predictivity

D_IN, N_SCALES = 3, 3


def linear_sae(**settings: Any) -> MTSAE:
    """Features 0 to 2 are linear in one scale each, feature 3 in the last two, feature 4 never fires."""
    values: dict[str, Any] = {"d_in": D_IN, "d_sae": 5, "dilations": (0, 3, 9), "activation": "relu", "kernel_size": 2}
    sae = MTSAE(MTSAEConfig(**(values | {"scale_norm": "none", "context_size": 40, "dtype": "float64"} | settings)))
    sae.taps.data[0, 0] = 1
    sae.taps.data[1:, 1] = 1
    for scale in range(N_SCALES):
        sae.W_enc.data[scale * D_IN, scale] = 1
    sae.W_enc.data[D_IN, 3] = sae.W_enc.data[2 * D_IN, 3] = 1
    sae.b_enc.data = torch.tensor([50.0, 50.0, 50.0, 50.0, -1e9], dtype=torch.float64)  # far from the kink
    return sae


def contexts(seed: int, n: int = 60) -> torch.Tensor:
    return torch.randn(n, 40, D_IN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_feature_of_one_scale_has_its_unique_r_squared_there() -> None:
    found = scale_predictivity(linear_sae(), [contexts(0)], [contexts(1)], ridge=1e-9)
    torch.testing.assert_close(found.all[:4], torch.ones(4))
    torch.testing.assert_close(found.alone[:, :3], torch.eye(3), atol=0.02, rtol=0)
    torch.testing.assert_close(found.unique[:, :3], torch.eye(3), atol=0.02, rtol=0)
    # scale 1 reads 36 of the 39 positions' pasts, scale 2 30 of them: their shares of the variance
    assert found.alone[:, 3].tolist() == pytest.approx([0, 6 / 11, 5 / 11], abs=0.03)
    assert found.all[4].isnan()


def test_against_least_squares_on_held_out_rows() -> None:
    torch.manual_seed(0)
    sae = MTSAE(MTSAEConfig(d_in=D_IN, d_sae=6, k=2, dilations=(0, 1, 4), scale_norm="none", context_size=40, dtype="float64"))
    for parameter in sae.parameters():
        parameter.data = torch.randn_like(parameter)
    fit_on, score_on = contexts(2, 12), contexts(3, 9)
    fit_on[:, 20] = score_on[:, 5] = 0
    found = scale_predictivity(sae, fit_on.split(5), score_on.split(4), ridge=1e-12)

    def regressors(h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, walls = sae.read_contexts(h)
        keep = ~walls
        return sae.encode_scales(x, walls)[keep], sae.encode(h)[keep]

    (z_fit, acts_fit), (z, acts) = regressors(fit_on), regressors(score_on)

    def r_squared(scales: list[int]) -> torch.Tensor:
        def design(z: torch.Tensor) -> torch.Tensor:
            return torch.cat([z[:, scales].flatten(1), torch.ones(len(z), 1, dtype=z.dtype)], dim=1)

        error = acts - design(z) @ torch.linalg.lstsq(design(z_fit), acts_fit).solution
        return (1 - error.pow(2).sum(dim=0) / (acts - acts.mean(dim=0)).pow(2).sum(dim=0)).float()

    torch.testing.assert_close(found.all, r_squared([0, 1, 2]), atol=1e-4, rtol=1e-4)
    for scale, others in enumerate(([1, 2], [0, 2], [0, 1])):
        torch.testing.assert_close(found.alone[scale], r_squared([scale]), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.unique[scale], r_squared([0, 1, 2]) - r_squared(others), atol=1e-4, rtol=1e-4)


def test_regressions_are_scored_on_other_contexts() -> None:
    """A regression fits a few contexts of noise well, but predicts nothing on others."""
    torch.manual_seed(0)
    sae = linear_sae(activation="topk", k=1)
    sae.b_enc.data.zero_()
    few = contexts(0, 1)[:, :12]
    own, other = (scale_predictivity(sae, [few], [h], ridge=1e-9).all.nanmean() for h in (few, contexts(1)))
    assert own > 0.3
    assert other < own - 0.2


def test_summary() -> None:
    nan = float("nan")
    found = ScalePredictivity(
        alone=torch.tensor([[0.8, 0.2, nan], [0.4, 0.6, nan]]),
        all=torch.tensor([0.9, 0.7, nan]),
        unique=torch.tensor([[0.5, 0.1, nan], [0.1, 0.3, nan]]),
    )
    expected = {
        "all": 0.8,
        "alone_0": 0.5,
        "alone_4": 0.5,
        "unique_0": 0.3,
        "unique_4": 0.2,
        "leading_0": 0.5,
        "leading_4": 0.5,
    }
    spread = (0.18**0.5 + 0.02**0.5) / 2
    assert found.summary((0, 4)) == pytest.approx(expected | {"spread": spread})


def test_massive_positions_take_no_part() -> None:
    """A few rows that are a thousand times as long would otherwise decide every regression."""
    clean = [scale_predictivity(linear_sae(), [contexts(0)], [contexts(1)], ridge=1e-9)]
    h = contexts(0)
    h[:3, 39] *= 1000  # the last position: no other reads it
    clean.append(scale_predictivity(linear_sae(activation="relu"), [h], [contexts(1)], ridge=1e-9))
    torch.testing.assert_close(clean[1].alone[:, :4], clean[0].alone[:, :4], atol=0.01, rtol=0)
