"""The interval over documents: what it covers, what it pairs, and what it cannot say."""

from __future__ import annotations

import pytest
import torch

from mtsae_lens.unlearning.bootstrap import delta_interval


def test_it_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    truth, hits, n = 0.3, 0, 100
    for seed in range(n):
        tokens = torch.randint(20, 200, (40,), generator=generator).double()
        deltas = tokens * (truth + 0.2 * torch.randn(40, generator=generator).double())
        low, high = delta_interval(deltas, tokens, seed)
        assert low < (deltas.sum() / tokens.sum()).item() < high
        hits += low <= truth <= high
    assert 0.86 <= hits / n < 1.0


def test_documents_are_resampled_with_both_their_sums() -> None:
    tokens = torch.tensor([1.0, 10, 100, 1000]).double()
    assert delta_interval(0.5 * tokens, tokens, 0) == pytest.approx((0.5, 0.5))


def test_it_is_seeded_and_wider_for_fewer_documents() -> None:
    generator = torch.Generator().manual_seed(1)
    deltas, tokens = torch.randn(200, generator=generator).double(), torch.ones(200).double()
    assert delta_interval(deltas, tokens, 3) == delta_interval(deltas, tokens, 3)
    assert delta_interval(deltas, tokens, 3) != delta_interval(deltas, tokens, 4)
    low, high = delta_interval(deltas, tokens, 3)
    few_low, few_high = delta_interval(deltas[:20], tokens[:20], 3)
    assert few_high - few_low > 2 * (high - low)


def test_no_change_is_no_width_and_one_document_a_point() -> None:
    assert delta_interval(torch.zeros(5).double(), torch.ones(5).double(), 0) == (0.0, 0.0)
    assert delta_interval(torch.tensor([3.0]), torch.tensor([6.0]), 0) == (0.5, 0.5)


def test_any_seed_that_a_command_takes_will_do() -> None:
    assert delta_interval(torch.zeros(5).double(), torch.ones(5).double(), -1) == (0.0, 0.0)
