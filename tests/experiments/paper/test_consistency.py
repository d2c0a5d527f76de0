"""Test what the published numbers imply, on a model whose output is a constant."""

import pytest
import torch

from mtsae_lens.evaluation.recovery import explained_variance
from mtsae_lens.experiments.paper.consistency import (
    activation_norm_from_std,
    derive_implied,
    is_bfloat16,
    largest_move,
    warm_up_lr,
)
from mtsae_lens.experiments.paper.published import METRICS, SETTINGS


def test_a_constant_output_never_explains_variance_and_zero_output_gives_the_mean_over_the_variance() -> None:
    h = torch.randn(500, 8) + torch.randn(8)
    variance = (h - h.mean(0)).pow(2).sum(-1).mean()
    assert explained_variance(h, torch.randn(8).expand(500, 8)) < 0
    assert explained_variance(h, h.mean(0).expand(500, 8)) == pytest.approx(0, abs=1e-5)
    assert explained_variance(h, torch.zeros(500, 8)) == pytest.approx(float(-h.mean(0).pow(2).sum() / variance), rel=1e-4)


def test_the_learning_rate_of_the_last_step_is_four_thousandths_of_the_peak() -> None:
    assert SETTINGS.n_steps == 4
    assert warm_up_lr(4) == pytest.approx(0.004 * 3e-4)
    assert warm_up_lr(5000) == 3e-4
    assert largest_move() == pytest.approx(10 / 1000 * 3e-4)


def test_the_published_explained_variance_is_a_bfloat16_and_its_neighbours_are_not() -> None:
    assert is_bfloat16(METRICS["explained_variance"])
    assert not is_bfloat16(METRICS["explained_variance"] + 1e-6)
    assert not is_bfloat16(METRICS["ce_loss_score"])


def test_table_1_and_the_l2_loss_imply_different_activations() -> None:
    found = derive_implied()
    assert found.activation_norm_from_l2_loss / found.activation_norm_from_table_1 > 10


def test_the_norm_that_a_deviation_implies_is_the_norm() -> None:
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(2000, 64, generator=generator) * 0.3
    taps = (torch.rand(3, 64, generator=generator) * 2 - 1) / 3**0.5
    convolved = h[:-2] * taps[0] + h[1:-1] * taps[1] + h[2:] * taps[2]
    assert activation_norm_from_std(float(convolved.std()), 64) == pytest.approx(float(h.norm(dim=-1).mean()), rel=0.1)
