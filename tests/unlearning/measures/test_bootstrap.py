"""Test the intervals over documents: coverage, pairing and invalid input."""

from __future__ import annotations

import pytest
import torch

from mtsae_lens.errors import DataError
from mtsae_lens.unlearning.measures.bootstrap import delta_interval, grouped_interval, two_level_interval


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


def paired(n: int = 60, gap: float = 0.1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Make two methods whose effects vary greatly between documents, in the same way."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(20, 200, (n,), generator=generator).double()
    document = torch.randn(n, generator=generator).double()
    noise = 0.05 * torch.randn(2, n, generator=generator).double()
    return tokens * (document + gap + noise[0]), tokens * (document + noise[1]), tokens


def test_a_difference_is_paired() -> None:
    first, second, tokens = paired()
    low, high = delta_interval(first - second, tokens, 0)
    assert 0 < low < 0.1 < high
    assert delta_interval(second - first, tokens, 0) == pytest.approx((-high, -low), abs=5e-3)
    assert delta_interval(first - first, tokens, 0) == (0.0, 0.0)
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))
    (a_low, a_high), (b_low, b_high) = delta_interval(first, tokens, 0), delta_interval(second[order], tokens[order], 0)
    assert a_low < b_high  # apart, the intervals overlap: what pairing wins
    assert (a_high - a_low) + (b_high - b_low) > 5 * (high - low)


def test_items_of_one_document_are_resampled_together() -> None:
    generator = torch.Generator().manual_seed(2)
    hits = (torch.rand(30, generator=generator) < 0.4).float()
    names = [f"d{n}" for n in range(30)]
    alone = grouped_interval(hits, names, 0)
    copied = grouped_interval(hits.repeat_interleave(20), [name for name in names for _ in range(20)], 0)
    assert copied == pytest.approx(alone, abs=0.03)
    independent = grouped_interval(
        hits.repeat_interleave(20), [str(n) for n in range(600)], 0
    )  # as if copies were new evidence
    assert independent[1] - independent[0] < 0.5 * (copied[1] - copied[0])
    values, documents = torch.tensor([1.0, 2, 3, 4, 9]), ["b", "a", "b", "c", "a"]
    assert grouped_interval(values, documents, 3) == delta_interval(
        torch.tensor([11.0, 4, 4]).double(), torch.tensor([2.0, 2, 1]).double(), 3
    )
    with pytest.raises(DataError, match="got 2 items and 1 names"):
        grouped_interval(torch.ones(2), ["a"], 0)


def seeds_and_documents(rng: torch.Generator, *, shared: bool, of_seed: float, of_document: float) -> list[torch.Tensor]:
    n_seeds, n_documents = 8, 12
    documents = torch.randn(1 if shared else n_seeds, n_documents, generator=rng).double().expand(n_seeds, -1)
    seeds = torch.randn(n_seeds, 1, generator=rng).double()
    return list(0.5 + of_seed * seeds + of_document * documents)


@pytest.mark.parametrize(
    ("shared", "of_seed", "of_document"), [(True, 0.3, 0.3), (True, 0.0, 0.5), (False, 0.3, 0.3), (False, 0.0, 0.5)]
)
def test_both_levels_are_covered(shared: bool, of_seed: float, of_document: float) -> None:
    rng, hits, n = torch.Generator().manual_seed(1), 0, 80
    tokens = [torch.full((12,), 50.0).double()] * 8
    for seed in range(n):
        effects = seeds_and_documents(rng, shared=shared, of_seed=of_seed, of_document=of_document)
        low, high = two_level_interval([50 * e for e in effects], tokens, seed, shared_documents=shared)
        hits += low <= 0.5 <= high
    assert hits / n > 0.82


def test_an_interval_that_ignores_a_level_is_too_narrow() -> None:
    rng = torch.Generator().manual_seed(0)
    tokens = [torch.ones(12).double()] * 8
    shared = seeds_and_documents(rng, shared=True, of_seed=0.0, of_document=0.5)
    width = [
        high - low
        for low, high in (two_level_interval(shared, tokens, 0, shared_documents=together) for together in (True, False))
    ]
    assert width[1] < 0.6 * width[0]
    by_seed = seeds_and_documents(rng, shared=True, of_seed=0.5, of_document=0.1)
    low, high = two_level_interval(by_seed, tokens, 0)
    pooled = delta_interval(torch.cat(by_seed), torch.cat(tokens), 0)
    assert pooled[1] - pooled[0] < 0.6 * (high - low)


def test_two_levels_with_one_seed_are_documents_alone() -> None:
    first, _, tokens = paired()
    assert two_level_interval([first], [tokens], 0) == pytest.approx(delta_interval(first, tokens, 0), abs=0.03)
    same = two_level_interval([0.5 * tokens, 0.5 * tokens], [tokens, tokens], 0)
    assert same == pytest.approx((0.5, 0.5))
    assert two_level_interval([first] * 2, [tokens] * 2, 1) == two_level_interval([first] * 2, [tokens] * 2, 1)


@pytest.mark.wrong_shapes
def test_two_levels_say_what_they_need() -> None:
    ones = torch.ones(4).double()
    with pytest.raises(DataError, match="shared_documents=False"):
        two_level_interval([ones, ones[:3]], [ones, ones[:3]], 0)
    with pytest.raises(DataError, match="sums and tokens of the same documents for each seed"):
        two_level_interval([], [], 0)
    low, high = two_level_interval([ones, ones[:3]], [ones, ones[:3]], 0, shared_documents=False)
    assert low == high == 1.0
