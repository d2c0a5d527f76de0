"""Test the null distribution: chance if nothing distinguishes dilations, more if the padding does."""

import pytest
import torch

from mtsae_lens.experiments.paper.initialization import (
    CHANCE_OF_AN_ORDER,
    gradients_without_learning,
    null_distribution,
    published_evenness,
    step_evenness,
    wilson_interval,
)
from mtsae_lens.experiments.paper.published import PublishedSettings
from mtsae_lens.experiments.paper.setup import PaperSetup

DILATIONS = (1, 2, 4, 8)


def test_on_white_noise_a_monotone_fall_is_as_rare_as_any_other_order() -> None:
    x = torch.randn(40, 64, 8, generator=torch.Generator().manual_seed(0))
    found = null_distribution(
        x, torch.zeros(x.shape[:2], dtype=torch.bool), DILATIONS, 3, "circular", 4000, torch.Generator().manual_seed(1)
    )
    assert found.monotone_share_low < CHANCE_OF_AN_ORDER < found.monotone_share_high
    assert found.monotone_share == pytest.approx(CHANCE_OF_AN_ORDER, abs=0.015)
    assert found.ratio_mean == pytest.approx(1.0, abs=0.1)
    assert found.n_draws == 2 * len(found.ratios) == 4000
    assert found.share_as_even <= found.monotone_share


def test_circular_padding_expects_the_same_of_every_dilation_and_zero_padding_less_of_larger_ones() -> None:
    x = torch.randn(20, 32, 64, generator=torch.Generator().manual_seed(0)).cumsum(dim=1)  # far from white in time
    x = x / x.std(dim=(0, 2), keepdim=True)
    circular = null_distribution(
        x, torch.zeros(x.shape[:2], dtype=torch.bool), DILATIONS, 3, "circular", 500, torch.Generator().manual_seed(1)
    )
    zero = null_distribution(
        x, torch.zeros(x.shape[:2], dtype=torch.bool), DILATIONS, 3, "zero", 500, torch.Generator().manual_seed(1)
    )
    expected = list(circular.expected_std.values())
    assert expected == pytest.approx([expected[0]] * 4, rel=1e-5)
    falling = list(zero.expected_std.values())
    assert falling == sorted(falling, reverse=True)
    assert zero.monotone_share_low > CHANCE_OF_AN_ORDER
    assert zero.mean_std["8"] == pytest.approx(zero.expected_std["8"], rel=0.05)


def test_evenness_is_one_on_a_straight_line() -> None:
    stds = torch.tensor([[4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 0.0]])
    assert step_evenness(stds).tolist() == [1.0, 2.0]
    assert published_evenness() == pytest.approx(0.0026 / 0.0022)


def test_the_interval_of_a_share() -> None:
    low, high = wilson_interval(50, 100)
    assert (low, high) == pytest.approx((0.404, 0.596), abs=1e-3)
    assert wilson_interval(0, 100)[0] == pytest.approx(0, abs=1e-12)


def test_with_a_learning_rate_of_zero_the_same_batches_give_the_same_gradients(setup: PaperSetup) -> None:
    settings = PublishedSettings(context_size=32, batch_size_tokens=128, training_tokens=520, buffer_size_sequences=32)
    found = gradients_without_learning(setup, settings, seed=0, n_batches=6)
    again = gradients_without_learning(setup, settings, seed=0, n_batches=6)
    norms = found.grad_norms
    assert len(norms) == 6
    assert norms == again.grad_norms
    assert len(set(norms)) == 6
    assert found.min <= found.mean <= found.max  # type: ignore[operator]
