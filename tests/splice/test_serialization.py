"""Test the file format of edits and gates: equality, classes that users register, and classes that cannot be saved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.errors import ConfigError, DataError, ModelError
from mtsae_lens.export.card import describe_edit
from mtsae_lens.splice.direction_edits import DirectionEdit
from mtsae_lens.splice.edit_files import load_edit, save_edit
from mtsae_lens.splice.edit_interface import EDITS, Edit, register_edit
from mtsae_lens.splice.edits import FeatureClamp, FeatureEdit
from mtsae_lens.splice.evidence_gates import DecayedMeanGate, TwoStateGate
from mtsae_lens.splice.gate_interface import GATES, Gate, register_gate
from mtsae_lens.splice.gates import AlwaysOpen, FeatureActiveGate, RunningEvidenceGate, SequenceRateGate
from mtsae_lens.splice.sae_state import SAEState
from mtsae_lens.splice.splicing import Splice


@pytest.fixture
def splice() -> Splice:
    sae = MTSAE(MTSAEConfig(d_in=8, d_sae=16, k=4, context_size=12))
    sae.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    return Splice(sae)


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """Forget what a test registers."""
    before = [dict(registry) for registry in (EDITS, GATES)]
    yield
    for registry, known in zip((EDITS, GATES), before, strict=True):
        registry.clear()
        registry.update(known)  # type: ignore[arg-type]
    Shift.kind = ManyFire.kind = ""


class _CountingGate(Gate):
    def score(self, feature_acts: Tensor) -> Tensor:
        return (feature_acts > 0).sum(dim=-1).float()

    def open_from(self, feature_acts: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.score(feature_acts) > 1, None


@dataclass(frozen=True)
class ManyFire(_CountingGate):
    """A gate with a field of every type."""

    n: int
    share: float
    weights: Float[Tensor, "row column"]
    skipped: Bool[Tensor, " n"]
    groups: tuple[tuple[int, ...], ...]
    mode: Literal["all", "any"] = "any"
    limit: float | None = None


@dataclass(frozen=True)
class Shift(Edit):
    """Move every position by a vector."""

    by: Float[Tensor, " d_in"]
    gate: Gate = field(default_factory=AlwaysOpen)

    def delta(self, sae_state: SAEState) -> Tensor:
        return self.by.expand_as(sae_state.sae_in)


def many_fire() -> ManyFire:
    return ManyFire(2, 0.5, torch.ones(2, 3), torch.tensor([True, False]), ((1,), (2, 3)))


INDICES = torch.tensor([1, 3])
SOME: list[Edit | Gate] = [
    FeatureEdit((1, 3), 2.0, FeatureActiveGate(INDICES)),
    FeatureClamp((1, 3), (0.5, 1.0), "any_fires", RunningEvidenceGate(INDICES, torch.tensor([0.1, 0.2]), 0.9, 0.1)),
    DirectionEdit(torch.eye(3), torch.zeros(3), 1.0, SequenceRateGate(INDICES, 0.1)),
    AlwaysOpen(),
    many_fire(),
    TwoStateGate("features", INDICES, torch.tensor([[0.5, 1.0]]), torch.tensor([0.5]), 0.25, 0.1, 0.2),
    DecayedMeanGate("activations", INDICES[:0], torch.tensor([[0.5, 1.0]]), torch.tensor([0.5]), 0.25, 0.9),
]


def copied(value: Any) -> Any:
    """Return the same values in different tensors."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Edit | Gate):
        return type(value)(**{name: copied(getattr(value, name)) for name in value.__dataclass_fields__})  # type: ignore[attr-defined]
    return value


@pytest.mark.parametrize("value", SOME, ids=lambda value: type(value).__name__)
def test_equal_edits_and_gates_compare_equal_and_hash_alike(value: Any) -> None:
    other = copied(value)
    assert other is not value
    assert other == value
    assert hash(other) == hash(value)
    assert len({other, value}) == 1
    assert all(value != different for different in SOME if different is not value)


def test_the_form_of_the_built_in_kinds_stays() -> None:
    """Files of earlier versions hold exactly these names, in this order."""
    gates = [AlwaysOpen(), FeatureActiveGate(INDICES), SequenceRateGate(INDICES, 0.5)]
    gates.append(RunningEvidenceGate(INDICES, torch.tensor([0.5, 1.0]), 0.5, 0.25))
    assert json.dumps([gate.to_json() for gate in gates]) == (
        '[{"kind": "always"}, {"kind": "feature_active", "features": [1, 3]}, '
        '{"kind": "sequence_rate", "features": [1, 3], "threshold": 0.5}, '
        '{"kind": "running_evidence", "features": [1, 3], "weights": [0.5, 1.0], "decay": 0.5, "threshold": 0.25}]'
    )
    edits = [FeatureEdit((1, 3), 2.0), FeatureClamp((1,), (0.5,)), DirectionEdit(torch.eye(2), torch.zeros(2), 1.0)]
    assert json.dumps([edit.to_json() for edit in edits]) == (
        '[{"kind": "features", "features": [1, 3], "multiplier": 2.0}, '
        '{"kind": "clamp", "features": [1], "values": [0.5], "where": "fires"}, '
        '{"kind": "directions", "basis": [[1.0, 0.0], [0.0, 1.0]], "center": [0.0, 0.0], "multiplier": 1.0}]'
    )


def test_one_number_makes_a_difference() -> None:
    gate = SOME[1].gate  # type: ignore[union-attr]
    assert replace(gate, decay=0.8) != gate
    assert replace(gate, weights=torch.tensor([0.1, 0.3])) != gate
    assert replace(SOME[1], gate=AlwaysOpen()) != SOME[1]  # type: ignore[type-var]
    assert replace(SOME[2], basis=torch.eye(3)[:2]) != SOME[2]  # type: ignore[type-var]


def test_an_edit_and_a_gate_of_ones_own_come_back(splice: Splice, tmp_path: Path) -> None:
    register_edit("shift")(Shift)
    register_gate("many_fire")(ManyFire)
    edit = Shift(torch.arange(8.0), many_fire())
    save_edit(tmp_path / "edit.json", edit, splice)
    assert load_edit(tmp_path / "edit.json", splice) == edit
    assert describe_edit(edit) == "A Shift is applied, where a ManyFire is open."


def test_what_is_not_registered_says_so(splice: Splice, tmp_path: Path) -> None:
    class Other:
        gate = AlwaysOpen()

    for edit, message in (
        (Other(), r"got one of class Other; .*mtsae_lens\.Edit and decorate it with @register_edit"),
        (Shift(torch.zeros(8)), r'got one of class Shift; decorate the class with @register_edit\("a_name"\)'),
        (FeatureEdit((1,), gate=many_fire()), r"got one of class ManyFire; decorate .*@register_gate"),
    ):
        with pytest.raises(DataError, match=message):
            save_edit(tmp_path / "edit.json", edit, splice)  # type: ignore[arg-type]
    assert not (tmp_path / "edit.json").exists()


def test_a_class_that_is_not_imported_is_named(splice: Splice, tmp_path: Path) -> None:
    register_gate("many_fire")(ManyFire)
    save_edit(tmp_path / "edit.json", FeatureEdit((1,), gate=many_fire()), splice)
    del GATES["many_fire"]
    with pytest.raises(DataError, match=rf"got 'many_fire' of class {ManyFire.__module__}\.ManyFire"):
        load_edit(tmp_path / "edit.json", splice)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 1.5),
        ("n", 2**40),
        ("share", True),
        ("weights", [[1.0], [1.0, 2.0]]),
        ("groups", [1]),
        ("mode", "some"),
        ("more", 1),
    ],
)
def test_values_that_a_class_does_not_take_are_refused(name: str, value: Any, splice: Splice, tmp_path: Path) -> None:
    register_gate("many_fire")(ManyFire)
    path = tmp_path / "edit.json"
    save_edit(path, FeatureEdit((1,), gate=many_fire()), splice)
    content = json.loads(path.read_text())
    content["gate"][name] = value
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"damaged edit \(gate\.{name}"):
        load_edit(path, splice)


def test_what_could_not_be_read_back_is_not_written(splice: Splice, tmp_path: Path) -> None:
    @register_gate("holds_a_set")
    @dataclass(frozen=True)
    class HoldsASet(_CountingGate):
        names: set[str]

    local = tuple[int, ...]

    @register_gate("local")
    @dataclass(frozen=True)
    class Local(_CountingGate):
        numbers: local

    never = SequenceRateGate(INDICES, float("inf"))
    for gate, message in (
        (HoldsASet({"a"}), "set.* cannot be saved.*define to_json"),
        (Local((1,)), "name 'local' is not defined"),
        (never, r"read back, got .* \(threshold: "),
    ):
        with pytest.raises(DataError, match=message):
            save_edit(tmp_path / "edit.json", FeatureEdit((1,), gate=gate), splice)
    assert not (tmp_path / "edit.json").exists()


def test_names_are_taken_once() -> None:
    with pytest.raises(ConfigError, match="a new name for a gate, got 'always'"):
        register_gate("always")(ManyFire)
    with pytest.raises(ConfigError, match="expected a class that inherits from Gate"):
        register_gate("shift")(Shift)  # type: ignore[type-var]
    assert register_gate("always")(AlwaysOpen) is AlwaysOpen  # a module that is loaded twice


def test_an_edit_of_ones_own_has_no_projection_by_itself(splice: Splice) -> None:
    with pytest.raises(ModelError, match="to project out, got a Shift without"):
        Shift(torch.zeros(8)).as_projection(splice.sae)


@pytest.mark.parametrize("gate", [FeatureActiveGate(INDICES), SequenceRateGate(INDICES, 0.1), SOME[1].gate])  # type: ignore[union-attr]
def test_a_gated_edit_is_not_described_as_one_that_acts_everywhere(gate: Gate) -> None:
    said = describe_edit(FeatureEdit((1, 2), 1.0, gate))
    assert said.startswith("2 features e_i become -1 e_i where they fire, ")
    assert "everywhere" not in said
    assert "one of 2 features" in said or "2 features (decay" in said
    assert "everywhere" in describe_edit(FeatureEdit((1, 2)))
