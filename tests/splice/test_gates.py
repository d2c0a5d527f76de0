"""Test gates: by hand, their score against their threshold, and whether they are causal."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.errors import ConfigError
from mtsae_lens.splice.direction_edits import DirectionEdit
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.evidence_gates import DecayedMeanGate, TwoStateGate
from mtsae_lens.splice.gate_interface import Gate
from mtsae_lens.splice.gates import AlwaysOpen, FeatureActiveGate, RunningEvidenceGate, SequenceRateGate
from mtsae_lens.splice.generation import StreamingEdit
from mtsae_lens.splice.splicing import Splice

FEATURES = torch.tensor([0, 3, 5])
GATES: dict[str, Gate] = {
    "always": AlwaysOpen(),
    "active": FeatureActiveGate(FEATURES),
    "rate": SequenceRateGate(FEATURES, 0.55),
    "running": RunningEvidenceGate(FEATURES, torch.tensor([1.0, -0.5, 2.0]), 0.8, 1.5),
    "two_state": TwoStateGate("features", FEATURES, torch.tensor([[1.0, -0.5, 2.0]]), torch.tensor([-0.4]), -0.6, 0.1, 0.2),
    "mean": DecayedMeanGate("features", FEATURES, torch.tensor([[1.0, -0.5, 2.0]]), torch.tensor([-0.4]), 0.5, 0.8),
}
THRESHOLDS = {"always": -1.0, "active": 0.0, "rate": 0.55, "running": 1.5, "two_state": -0.6, "mean": 0.5}
CAUSAL = [name for name, gate in GATES.items() if gate.causal]


def acts(n: int = 8, n_positions: int = 20, seed: int = 0) -> Tensor:
    values = torch.randn(n, n_positions, 8, generator=torch.Generator().manual_seed(seed))
    return values.clamp(min=0) * (torch.rand(values.shape, generator=torch.Generator().manual_seed(seed + 1)) < 0.5)


@pytest.mark.wrong_shapes
def test_what_is_no_gate_is_refused() -> None:
    assert torch.equal(FeatureActiveGate([1, 2]).features, torch.tensor([1, 2]))  # type: ignore[arg-type]
    for features in (3, [0.5], torch.tensor([True, False])):
        with pytest.raises(ConfigError, match="expected feature indices for a gate"):
            FeatureActiveGate(features)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="one weight for each feature of a gate, got 1 for 2 features"):
        RunningEvidenceGate(torch.tensor([1, 2]), torch.tensor([1.0]), 0.9, 0.0)


def test_a_gate_of_many_features_prints_as_one_line() -> None:
    features = torch.arange(1000)
    assert repr(FeatureActiveGate(features)) == "FeatureActiveGate(1000 features)"
    assert repr(SequenceRateGate(features, 0.55)) == "SequenceRateGate(1000 features, threshold=0.55)"
    running = RunningEvidenceGate(features, features.float(), 0.97, 1 / 3)
    assert repr(running) == "RunningEvidenceGate(1000 features, decay=0.97, threshold=0.3333)"


def test_feature_active_by_hand() -> None:
    feature_acts = torch.tensor([[[1.0, 0, 0], [0, 2, 0], [0, 0, 3], [4, 0, 5]]])
    gate = FeatureActiveGate(torch.tensor([0, 2]))
    assert gate.score(feature_acts).tolist() == [[1, 0, 1, 2]]
    assert gate.open_from(feature_acts, None)[0].tolist() == [[True, False, True, True]]


def test_sequence_rate_by_hand() -> None:
    fires = torch.tensor([[1.0, 0, 0], [0, 2, 0], [1, 0, 3], [0, 0, 0]])  # the last position has no feature: it does not count
    feature_acts = torch.stack([fires, torch.zeros(4, 3)])
    gate = SequenceRateGate(torch.tensor([0, 2]), 0.6)
    torch.testing.assert_close(gate.score(feature_acts), torch.tensor([[2 / 3] * 4, [0.0] * 4]))
    assert gate.open_from(feature_acts, None)[0].tolist() == [[True] * 4, [False] * 4]
    assert not SequenceRateGate(torch.tensor([0, 2]), 0.67).open_from(feature_acts, None)[0].any()


def test_running_evidence_by_hand() -> None:
    feature_acts = torch.tensor([[[1.0, 0], [0, 0], [1, 9], [0, 1]]])
    gate = RunningEvidenceGate(torch.tensor([0, 1]), torch.tensor([2.0, -1.0]), 0.5, 1.2)
    torch.testing.assert_close(gate.score(feature_acts), torch.tensor([[2.0, 1.0, 1.5, -0.25]]))
    opened, state = gate.open_from(feature_acts, None)
    assert opened.tolist() == [[True, False, True, False]]
    assert state is not None
    assert state.tolist() == [-0.25]


@pytest.mark.wrong_shapes
def test_weights_may_be_whole_numbers() -> None:
    one, other = (RunningEvidenceGate([0, 3], weights, 0.8, 1.5) for weights in ([1, 2], torch.tensor([1.0, 2.0])))  # type: ignore[arg-type]
    assert torch.equal(one.score(acts()), other.score(acts()))


@pytest.mark.parametrize("name", GATES)
def test_a_gate_is_its_score_above_its_threshold(name: str) -> None:
    opened = GATES[name].open_from(acts(), None)[0]
    score = GATES[name].score(acts())
    assert opened.shape == score.shape == (8, 20)
    assert opened.dtype == torch.bool
    assert torch.equal(opened, score > THRESHOLDS[name])
    if name != "always":
        assert 0 < opened.float().mean() < 1  # so equality says something
        assert not torch.equal(opened, score > THRESHOLDS[name] + 1)


def looks_ahead(gate: Gate) -> bool:
    """Whether later activations change an earlier answer or score."""
    before = acts()
    found = False
    for t in (0, 5, 18):
        after = before.clone()
        after[:, t + 1 :] = acts(seed=7)[:, t + 1 :]
        for answer in (lambda a: gate.open_from(a, None)[0], gate.score):
            found |= not torch.equal(answer(before)[:, : t + 1], answer(after)[:, : t + 1])
    return found


@pytest.mark.parametrize("name", GATES)
def test_only_a_gate_that_says_so_looks_ahead(name: str) -> None:
    assert looks_ahead(GATES[name]) is not GATES[name].causal
    assert GATES[name].causal is (name != "rate")


@pytest.mark.parametrize("name", CAUSAL)
def test_pieces_with_the_state_are_the_whole(name: str) -> None:
    gate, feature_acts = GATES[name], acts()
    whole = gate.open_from(feature_acts, None)[0]
    pieces, state = [], None
    for piece in feature_acts.split([1, 6, 1, 1, 11], dim=1):
        opened, state = gate.open_from(piece, state)
        pieces.append(opened)
    assert torch.equal(torch.cat(pieces, dim=1), whole)
    if name in ("running", "two_state", "mean"):
        forgetful = [gate.open_from(piece, None)[0] for piece in feature_acts.split(1, dim=1)]
        assert not torch.equal(torch.cat(forgetful, dim=1), whole)


@pytest.mark.parametrize("name", ["rate", "running", "active", "two_state", "mean"])
def test_a_context_is_judged_alone(name: str) -> None:
    gate, feature_acts = GATES[name], acts()
    apart = torch.cat([gate.open_from(one, None)[0] for one in feature_acts.split(1)])
    assert torch.equal(gate.open_from(feature_acts, None)[0], apart)


@pytest.mark.parametrize("name", GATES)
def test_generation_refuses_a_gate_that_looks_ahead(name: str) -> None:
    sae = MTSAE(MTSAEConfig(d_in=4, d_sae=8, k=4, context_size=12))
    sae.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    edits: list[Any] = [
        FeatureEdit((1,), gate=GATES[name]),
        DirectionEdit(torch.eye(4)[:1], torch.zeros(4), gate=GATES[name]),
    ]
    for edit in edits:
        if GATES[name].causal:
            StreamingEdit(Splice(sae), edit)
        else:
            with pytest.raises(ConfigError, match="a SequenceRateGate, which reads the whole context before it opens"):
                StreamingEdit(Splice(sae), edit)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FeatureActiveGate(torch.tensor([-1])), "feature indices of at least 0 for a gate, got -1"),
        (lambda: SequenceRateGate(torch.tensor([1]), math.nan), "expected a number as threshold of a gate, got NaN"),
        (lambda: RunningEvidenceGate(torch.tensor([1]), torch.ones(1), 1.0, 0.0), "at least 0 and less than 1, got 1.0"),
        (lambda: RunningEvidenceGate(torch.tensor([1]), torch.ones(1), math.nan, 0.0), "at least 0 and less than 1, got nan"),
        (
            lambda: RunningEvidenceGate(torch.tensor([1]), torch.ones(1), 0.5, math.nan),
            "expected a number as threshold of a gate",
        ),
        (
            lambda: RunningEvidenceGate(torch.tensor([1]), torch.tensor([math.nan]), 0.5, 0.0),
            "expected finite weights of a gate",
        ),
    ],
)
def test_gates_that_never_could_open_rightly(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_feature_that_the_sae_does_not_have() -> None:
    acts = torch.rand(1, 4, 8)
    for gate in (
        FeatureActiveGate(torch.tensor([8])),
        SequenceRateGate(torch.tensor([8]), 0.1),
        RunningEvidenceGate(torch.tensor([8]), torch.ones(1), 0.5, 0.0),
    ):
        with pytest.raises(ConfigError, match="from 0 to 7, got up to 8"):
            gate.open_from(acts, None)
