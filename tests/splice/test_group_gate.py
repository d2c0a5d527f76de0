"""Test the gate of known groups: against the likelihoods by hand, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.distributions import Normal

from mtsae_lens.errors import ConfigError
from mtsae_lens.splice.group_gate import KnownGroupsGate


def make_gate() -> KnownGroupsGate:
    generator = torch.Generator().manual_seed(0)
    return KnownGroupsGate(
        torch.randn(3, 5, generator=generator),
        torch.randn(5, generator=generator),
        torch.randn(4, 3, generator=generator),
        torch.rand(4, 3, generator=generator) + 0.5,
        torch.tensor([6.0, 4.0, 2.0]),
        threshold=0.3,
    )


def numbers() -> torch.Tensor:
    return torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(1))


def test_the_score_is_the_ratio_of_the_likelihoods() -> None:
    gate, observed = make_gate(), numbers()
    for row, position in ((0, 0), (1, 4)):
        z = gate.projection @ (observed[row, position] - gate.center)
        known = torch.stack(
            [Normal(m, v.sqrt()).log_prob(z).sum().exp() for m, v in zip(gate.means, gate.variances, strict=True)]
        )
        new = Normal(torch.zeros(3), gate.prior.sqrt()).log_prob(z).sum()
        assert gate.score(observed)[row, position].item() == pytest.approx((known.mean().log() - new).item(), abs=1e-4)


def test_each_position_is_judged_alone_and_special_tokens_never_open() -> None:
    gate, observed = make_gate(), numbers()
    observed[:, 2] = 0
    opened, state = gate.open_from(observed, None)
    assert state is None
    assert torch.equal(opened, gate.score(observed) > 0.3)
    assert 0 < opened.float().mean() < 1
    assert not replace(gate, threshold=-1e10).open_from(observed, None)[0][:, 2].any()
    alone = torch.cat([gate.open_from(part, None)[0] for part in observed.split(1, dim=1)], dim=1)
    assert torch.equal(alone, opened)


def test_heads_are_flattened() -> None:
    gate, observed = make_gate(), numbers()
    assert torch.equal(gate.observe(observed.unsqueeze(2), torch.zeros(2, 7, 9)), observed)


@pytest.mark.wrong_shapes
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"center": torch.zeros(4)}, r"expected a gate of known groups with .*, got projection \(3, 5\), center \(4,\)"),
        ({"variances": torch.ones(4, 2)}, r"variances \(4, 2\)"),
        ({"prior": torch.ones(2)}, r"prior \(2,\)"),
        ({"means": torch.zeros(0, 3), "variances": torch.ones(0, 3)}, r"means \(0, 3\)"),
        ({"means": torch.full((4, 3), torch.nan)}, "expected finite numbers in a gate of known groups"),
        ({"variances": torch.zeros(4, 3)}, "expected variances above 0 in a gate of known groups"),
        ({"prior": torch.tensor([1.0, -1.0, 1.0])}, "expected variances above 0 in a gate of known groups"),
        ({"variances": torch.full((4, 3), 1e-40)}, "got 0, less, or nearly 0"),
        ({"threshold": float("nan")}, "expected a number as threshold of a gate"),
    ],
)
def test_what_is_no_gate_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(make_gate(), **changed)


@pytest.mark.wrong_shapes
def test_another_width_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected activations of width 5, as the gate was fitted on, got 6"):
        make_gate().score(torch.zeros(1, 1, 6))
    with pytest.raises(ConfigError, match="center: expected 6 numbers, one for each coordinate, got 5"):
        make_gate().check_fits(9, 6)


def test_it_says_what_it_is() -> None:
    assert repr(make_gate()) == "KnownGroupsGate(4 groups, 3 directions, threshold=0.3)"
    assert make_gate().describe() == "where the log-likelihood ratio of 4 known groups to a new group exceeds 0.3"
