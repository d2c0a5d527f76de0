"""Bits per token: an adaptive code, on sources with a known entropy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mtsae_lens.errors import ConfigError, SilentSAEError
from mtsae_lens.evaluation.bits import BITS_MEANINGS, Levels, count_levels, count_support, measure_bits, sequential_bits

N_CONTEXTS, N_POS, D_SAE = 64, 128, 24
RATES = torch.linspace(0.01, 0.4, D_SAE)


def entropy(p: Tensor) -> Tensor:
    return -(p * p.log2() + (1 - p) * (1 - p).log2())


class _Identity:
    """An SAE whose features are its input."""

    def __init__(self, scale: float = 1.0) -> None:
        self.W_dec, self.device = torch.eye(D_SAE) * scale, torch.device("cpu")
        self.scale = scale

    def encode(self, h: Tensor) -> Tensor:
        return h / self.scale

    def decode(self, feature_acts: Tensor) -> Tensor:
        return feature_acts * self.scale


def batches(feature_acts: Tensor) -> list[tuple[Tensor, Tensor]]:
    counted = torch.ones(feature_acts.shape[:2], dtype=torch.bool)
    return list(zip(feature_acts.split(16), counted.split(16), strict=True))


def bits(select: Tensor, test: Tensor, value_bits: int = 4, scale: float = 1.0) -> dict[str, float]:
    sae: Any = _Identity(scale)
    return measure_bits(sae, batches(select * scale), batches(test * scale), value_bits)


def draw_support(seed: int, n_contexts: int = N_CONTEXTS) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n_contexts, N_POS, D_SAE, generator=generator) < RATES


def test_independent_features_cost_their_entropy() -> None:
    select, test = draw_support(0), draw_support(1)
    found = bits(select.float(), test.float())
    assert found["support_bits"] == pytest.approx(float(entropy(RATES).sum()), rel=0.01)
    assert found["value_bits"] < 0.01  # all values are equal
    assert found["bits_per_token"] == pytest.approx(found["support_bits"] + found["value_bits"])
    assert set(found) == set(BITS_MEANINGS)


def test_features_that_fire_again_cost_their_conditional_entropy() -> None:
    again, starts = 0.8, 0.05
    states = []
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.rand(N_CONTEXTS, N_POS, D_SAE, generator=generator)
        state = [drawn[:, 0] < starts]
        for t in range(1, N_POS):
            state.append(drawn[:, t] < torch.where(state[-1], again, starts))
        states.append(torch.stack(state, dim=1).float())
    rate = starts / (1 - again + starts)
    conditional = rate * entropy(torch.tensor(again)) + (1 - rate) * entropy(torch.tensor(starts))
    found = bits(*states)
    assert found["support_bits"] == pytest.approx(D_SAE * float(conditional), rel=0.02)
    assert found["support_bits"] < 0.8 * D_SAE * float(
        entropy(torch.tensor(rate))
    )  # what a code without the position before takes


@pytest.mark.parametrize("value_bits", [3, 5])
def test_gaussian_values_cost_the_entropy_of_their_levels(value_bits: int) -> None:
    generator = torch.Generator().manual_seed(0)
    select, test = (torch.randn(N_CONTEXTS, N_POS, D_SAE, generator=generator).abs() + 1e-6 for _ in range(2))
    found = bits(select, test, value_bits)
    normal = torch.distributions.Normal(0.0, 1.0)
    top = normal.icdf(torch.tensor(0.9995))  # of |v|, the quantile 0.999
    edges = torch.linspace(0, float(top), 2**value_bits + 1)
    edges[-1] = math.inf
    p = 2 * (normal.cdf(edges[1:]) - normal.cdf(edges[:-1]))
    assert found["value_bits"] / D_SAE == pytest.approx(float(-(p * p.log2()).sum()), rel=0.01)
    assert found["support_bits"] < 0.01 * D_SAE  # all features fire
    v = torch.linspace(0, 8, 200_001, dtype=torch.float64)
    density = 2 * normal.log_prob(v).exp()
    levels = Levels(torch.tensor([float(top) / 2**value_bits]), 2**value_bits)
    rounded = levels.restore(levels.quantize(v.float()[None, :, None]))[0, :, 0].double()
    noise = float((density * (v - rounded) ** 2).sum() / density.sum()) / (1 - 2 / math.pi)  # over the variance of |v|
    assert 1 - found["explained_variance_coded"] == pytest.approx(noise, rel=0.05)


def test_the_scale_of_features_and_decoder_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 16, N_POS, D_SAE, generator=generator).relu()
    assert bits(*values, scale=8.0) == pytest.approx(bits(*values), rel=1e-6)


def test_the_code_uses_the_past_alone() -> None:
    """The closed form is the product of probabilities of which each is computed from the symbols before it."""
    generator = torch.Generator().manual_seed(0)
    symbols = torch.randint(3, (50,), generator=generator).tolist()
    counts, prior, total = torch.tensor([2.0, 0.0, 1.0]), torch.tensor([0.5, 1.0, 0.25]), 0.0
    known = counts.clone()
    for symbol in symbols:
        total -= math.log2((counts[symbol] + prior[symbol]) / (counts.sum() + prior.sum()))
        counts[symbol] += 1
    assert float(sequential_bits(known, counts - known, prior)) == pytest.approx(total, rel=1e-9)


def test_the_support_is_counted_as_it_follows_itself() -> None:
    active = torch.tensor([[[True], [True], [False], [True], [True]]])
    counted = torch.tensor([[True, True, True, True, False]])
    assert count_support(active, counted).tolist() == [
        [[0.0, 2.0], [1.0, 1.0]]
    ]  # silence to silence, to fire; fire to silence, to fire
    hidden = torch.tensor([[True, False, True, True, True]])  # a position that is not sent counts as silent
    assert count_support(active, hidden).tolist() == [[[1.0, 2.0], [0.0, 1.0]]]


def test_values_of_both_signs_and_beyond_the_levels() -> None:
    levels = Levels(torch.tensor([0.5, 0.5]), 4)
    values = torch.tensor([[[0.2, -0.2], [1.7, -9.0], [9.0, 0.6]]])
    quantized = levels.quantize(values)
    assert quantized.tolist() == [[[0, 4], [3, 7], [3, 1]]]
    assert levels.restore(quantized).tolist() == [[[0.25, -0.25], [1.75, -1.75], [1.75, 0.75]]]
    counts = count_levels(quantized, values != 0, 8)
    assert counts.tolist() == [[1, 0, 0, 2, 0, 0, 0, 0], [0, 1, 0, 0, 1, 0, 0, 1]]


def test_what_cannot_be_coded_is_refused() -> None:
    silent = torch.zeros(1, 4, D_SAE)
    with pytest.raises(SilentSAEError, match="features that fire"):
        bits(silent, silent)
    with pytest.raises(ConfigError, match="value_bits from 1 to 16"):
        bits(silent + 1, silent, value_bits=0)
