"""Test the gates that accumulate a linear reading: by hand, by the exact posterior of a chain, at walls, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mtsae_lens.errors import ConfigError
from mtsae_lens.splice.evidence_gates import DecayedMeanGate, EvidenceGate, TwoStateGate
from mtsae_lens.splice.serialization import Serializable

NONE = torch.tensor([], dtype=torch.long)
WEIGHTS = torch.tensor([[0.7, -0.4, 1.1]])
BIAS = torch.tensor([0.2])
RAW: dict[str, EvidenceGate] = {
    "two_state": TwoStateGate("activations", NONE, WEIGHTS, BIAS, -0.6, 0.1, 0.25),
    "mean": DecayedMeanGate("activations", NONE, WEIGHTS, BIAS, 0.1, 0.8),
}


def numbers(n_positions: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(2, n_positions, 3, generator=torch.Generator().manual_seed(seed))


def test_the_filter_is_the_posterior_of_a_two_state_chain() -> None:
    """Sum over every path of hidden states, with the likelihood ratio of each position."""
    gate, observed = RAW["two_state"], numbers(6)
    assert isinstance(gate, TwoStateGate)
    a, b = gate.opening, gate.closing
    enter = [[1 - a, a], [b, 1 - b]]
    prior = [b / (a + b), a / (a + b)]
    ratios = (observed[0].double() @ WEIGHTS[0].double() + 0.2).exp().tolist()
    for t in range(6):
        totals = [0.0, 0.0]
        for path in range(2 ** (t + 2)):
            states = [(path >> place) & 1 for place in range(t + 2)]  # the first is the state before the context
            chance = prior[states[0]]
            for before, after, ratio in zip(states, states[1:], ratios, strict=False):
                chance *= enter[before][after] * (ratio if after else 1.0)
            totals[states[-1]] += chance
        assert gate.score(observed)[0, t].item() == pytest.approx(math.log(totals[1] / totals[0]), abs=1e-5)


def test_the_decayed_mean_by_hand() -> None:
    values = (numbers(4)[0].double() @ WEIGHTS[0].double() + 0.2).tolist()
    for t in range(4):
        weights = [0.8 ** (t - s) for s in range(t + 1)]
        expected = sum(w * v for w, v in zip(weights, values, strict=False)) / sum(weights)
        assert RAW["mean"].score(numbers(4))[0, t].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", RAW)
def test_a_masked_position_is_not_a_step(name: str) -> None:
    gate, observed = RAW[name], numbers()
    wall = torch.zeros(2, 3, 3)
    spread = torch.cat([wall, observed[:, :5], wall, observed[:, 5:]], dim=1)
    score = gate.score(spread)
    torch.testing.assert_close(torch.cat([score[:, 3:8], score[:, 11:]], dim=1), gate.score(observed))
    assert torch.equal(score[:, 8:11], score[:, 7:8].expand(2, 3))
    assert not torch.equal(gate.score(observed)[:, 4], gate.score(observed)[:, 5])


@pytest.mark.parametrize("name", RAW)
def test_a_gate_on_activations_reads_the_activations(name: str) -> None:
    gate = RAW[name]
    features = torch.rand(2, 12, 8)
    assert torch.equal(gate.observe(numbers(), features), numbers())
    of_heads = numbers()[..., None].expand(2, 12, 3, 2)
    assert gate.observe(of_heads, features).shape == (2, 12, 6)
    opened = gate.open_from(numbers(), None)[0]
    assert torch.equal(opened, gate.score(numbers()) > gate.threshold)
    assert 0 < opened.float().mean() < 1


def test_detectors_are_a_mixture() -> None:
    weights, bias = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), torch.linspace(-1, 1, 4)
    gate = TwoStateGate("activations", NONE, weights, bias, 0.0, 0.1, 0.2)
    evidence, is_step = gate.steps(numbers())
    torch.testing.assert_close(evidence, (numbers() @ weights.T + bias).exp().sum(dim=-1).log())
    assert bool(is_step.all())


def test_evidence_saturates() -> None:
    """After much evidence the state leaves at the closing rate, however long the evidence was."""
    gate = TwoStateGate("activations", NONE, torch.ones(1, 1), torch.zeros(1), 0.0, 0.05, 0.2)
    short, long = (torch.cat([torch.full((1, n, 1), 5.0), torch.full((1, 4, 1), -2.0)], dim=1) for n in (5, 50))
    assert gate.score(short)[0, -1].item() == pytest.approx(gate.score(long)[0, -1].item(), abs=1e-4)
    assert not bool(gate.open_from(long, None)[0][0, -1])


@pytest.mark.parametrize("name", RAW)
def test_extreme_evidence_gives_no_nan(name: str) -> None:
    for size in (1e4, -1e4):
        assert bool(RAW[name].score(torch.full((1, 50, 3), size)).isfinite().all())


@pytest.mark.parametrize("name", RAW)
def test_a_gate_is_the_same_after_json(name: str) -> None:
    gate: Serializable = RAW[name]
    content = gate.to_json()
    assert type(gate).from_json({k: v for k, v in content.items() if k != "kind"}) == gate


@pytest.mark.wrong_shapes
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TwoStateGate("words", NONE, WEIGHTS, BIAS, 0.0, 0.1, 0.1), "reads features or activations, got 'words'"),  # type: ignore[arg-type]
        (
            lambda: TwoStateGate("features", NONE, WEIGHTS, BIAS, 0.0, 0.1, 0.1),
            r"got weights \(1, 3\), 1 biases and 0 features",
        ),
        (lambda: TwoStateGate("activations", torch.tensor([1]), WEIGHTS, BIAS, 0.0, 0.1, 0.1), "1 biases and 1 features"),
        (
            lambda: TwoStateGate("activations", NONE, WEIGHTS, BIAS, 0.0, 0.0, 0.1),
            "rates above 0 with a sum of at most 1, got 0.0",
        ),
        (lambda: TwoStateGate("activations", NONE, WEIGHTS, BIAS, 0.0, 0.6, 0.6), "a sum of at most 1, got 0.6 and 0.6"),
        (lambda: TwoStateGate("activations", NONE, WEIGHTS, BIAS, 0.0, math.nan, 0.6), "got nan and 0.6"),
        (lambda: TwoStateGate("activations", NONE, WEIGHTS, BIAS / 0, 0.0, 0.1, 0.1), "finite weights and biases"),
        (lambda: TwoStateGate("activations", NONE, WEIGHTS, BIAS, math.nan, 0.1, 0.1), "threshold of a gate, got NaN"),
        (lambda: DecayedMeanGate("activations", NONE, WEIGHTS, BIAS, 0.0, 1.0), "less than 1, got 1.0"),
    ],
)
def test_what_is_no_gate_is_refused(make: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


@pytest.mark.parametrize("name", RAW)
def test_another_width_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="activations of width 3, as the gate was fitted on, got 4"):
        RAW[name].score(torch.ones(1, 2, 4))
    with pytest.raises(ConfigError, match="weights: expected 4 numbers in a row, one for each coordinate, got 3"):
        RAW[name].check_fits(8, 4)
    RAW[name].check_fits(8, 3)
