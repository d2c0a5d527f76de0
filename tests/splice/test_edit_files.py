"""Test that an edit is read from its file unchanged, and only for the SAE that it belongs to."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.errors import DataError, ModelError, MTSAEWarning
from mtsae_lens.splice import model_identity
from mtsae_lens.splice.direction_edits import DirectionEdit, orthonormal_rows
from mtsae_lens.splice.edit_files import load_edit, save_edit, weights_digest
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.splice.edits import FeatureClamp, FeatureEdit
from mtsae_lens.splice.error_edits import CombinedEdit, ErrorEdit
from mtsae_lens.splice.evidence_gates import DecayedMeanGate, TwoStateGate
from mtsae_lens.splice.gate_interface import Gate
from mtsae_lens.splice.gates import AlwaysOpen, FeatureActiveGate, RunningEvidenceGate, SequenceRateGate
from mtsae_lens.splice.group_gate import KnownGroupsGate
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.model_identity import identify
from mtsae_lens.splice.splicing import Splice
from mtsae_lens.unlearning.measures.effects import edited_logits


def splice(seed: int = 0, hook_name: str = "blocks.0.hook_resid_post") -> Splice:
    sae = MTSAE(MTSAEConfig(d_in=8, d_sae=16, k=4, context_size=12))
    generator = torch.Generator().manual_seed(seed)
    for parameter in sae.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator)
    sae.cfg.metadata.hook_name = hook_name
    return Splice(sae)


RUNNING = RunningEvidenceGate(torch.tensor([1, 3]), torch.tensor([0.1, 1 / 3]), decay=0.97, threshold=0.2)


@pytest.mark.parametrize("gate", [AlwaysOpen(), RUNNING], ids=["always", "running"])
def test_an_edit_does_the_same_after_a_trip_through_its_file(gate: Gate, tmp_path: Path) -> None:
    edit = FeatureEdit((3, 5, 15), multiplier=1.5, gate=gate)
    save_edit(tmp_path / "edit.json", edit, splice(), {"seed": 7})
    loaded = load_edit(tmp_path / "edit.json", splice())
    assert (loaded.features, loaded.multiplier) == (edit.features, edit.multiplier)
    h = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(1))
    edited = splice().edited(h, edit)
    assert not torch.equal(edited, h)
    assert torch.equal(splice().edited(h, loaded), edited)
    assert json.loads((tmp_path / "edit.json").read_text())["provenance"] == {"seed": 7}


GATES: dict[str, Gate] = {
    "always": AlwaysOpen(),
    "active": FeatureActiveGate(torch.arange(0, 32, 3)),
    "rate": SequenceRateGate(torch.arange(0, 32, 5), 0.3),
    "running": RunningEvidenceGate(torch.arange(16), torch.linspace(-0.3, 1 / 3, 16), 0.9, 0.1),
    "two_state": TwoStateGate(
        "features", torch.arange(16), torch.linspace(-0.3, 1 / 3, 16)[None], torch.tensor([1 / 7]), 0.1, 1 / 30, 0.2
    ),
    "groups": KnownGroupsGate(
        torch.linspace(-1, 1 / 3, 96).view(3, 32),
        torch.ones(32) / 7,
        torch.eye(3),
        torch.full((3, 3), 1 / 3),
        torch.ones(3),
        -9.0,
    ),
    "mean": DecayedMeanGate("activations", torch.arange(0), torch.linspace(-1, 1, 32)[None], torch.tensor([1 / 7]), 0.1, 0.9),
}


def edits_behind(gate: Gate) -> dict[str, Edit]:
    basis = orthonormal_rows(torch.randn(3, 32, generator=torch.Generator().manual_seed(0)))
    center = torch.randn(32, generator=torch.Generator().manual_seed(1)) / 3
    clamp = {
        where: FeatureClamp(tuple(range(20)), tuple(n / 3 - 4 for n in range(20)), where, gate)  # type: ignore[arg-type]
        for where in ("fires", "any_fires", "everywhere")
    }
    return {
        "features": FeatureEdit(tuple(range(20)), 1 / 3, gate),
        "directions": DirectionEdit(basis, center, 1 / 3, gate),
        "error": ErrorEdit(basis, center, 1 / 3, gate),
        "combined": CombinedEdit((FeatureEdit(tuple(range(20)), 1 / 3), ErrorEdit(basis, center)), gate),
    } | clamp


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("kind", edits_behind(AlwaysOpen()))
def test_every_kind_gives_the_same_logits_after_its_trip(kind: str, gate: str, lm: HookedLM, tmp_path: Path) -> None:
    edit = edits_behind(GATES[gate])[kind]
    save_edit(tmp_path / "edit.json", edit, lm.splice)
    loaded = load_edit(tmp_path / "edit.json", lm.splice)
    assert type(loaded) is type(edit)
    assert type(loaded.gate) is type(edit.gate)
    tokens = torch.randint(1, 4000, (4, 16), generator=torch.Generator().manual_seed(2))
    logits = edited_logits(lm, edit)(tokens)
    assert torch.equal(edited_logits(lm, loaded)(tokens), logits)
    assert not torch.allclose(logits, lm.model(tokens, prepend_bos=False), atol=1e-3)


def test_every_number_of_a_file_matters(lm: HookedLM, tmp_path: Path) -> None:
    """The trip is not blind: an edit that differs in one setting got others."""
    tokens = torch.randint(1, 4000, (4, 16), generator=torch.Generator().manual_seed(2))
    path = tmp_path / "edit.json"
    for kind, part, name, value in (
        ("fires", "edit", "where", "everywhere"),
        ("fires", "edit", "values", [1.0] * 20),
        ("directions", "edit", "multiplier", 2.0),
        ("directions", "edit", "center", [1.0] * 32),
        ("features", "gate", "threshold", 1.0),
        ("features", "gate", "decay", 0.1),
    ):
        edit = edits_behind(GATES["running"])[kind]
        save_edit(path, edit, lm.splice)
        content = json.loads(path.read_text())
        assert content[part][name] != value
        content[part][name] = value
        path.write_text(json.dumps(content))
        changed = load_edit(path, lm.splice)
        assert not torch.equal(edited_logits(lm, changed)(tokens), edited_logits(lm, edit)(tokens)), (kind, name)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "expected edits to combine, got none"),
        ([{"kind": "unknown"}], "parts: expected edits out of .*error.*got 'unknown'"),
        ([{"kind": "combined", "parts": []}], "parts: expected edits out of"),
        ([{"kind": "features", "features": [99], "multiplier": 0.0}], "expected indices from 0 to 31, got 99"),
        ([{"kind": "features", "features": [1]}], "multiplier"),
        ([7], "parts: expected a list of edits"),
    ],
)
def test_damaged_parts_are_refused_in_one_line(parts: list[Any], message: str, lm: HookedLM, tmp_path: Path) -> None:
    path = tmp_path / "edit.json"
    save_edit(path, edits_behind(AlwaysOpen())["combined"], lm.splice)
    content = json.loads(path.read_text())
    content["edit"]["parts"] = parts
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as refused:
        load_edit(path, lm.splice)
    assert "\n" not in str(refused.value)


def test_an_edit_of_another_sae_or_hook_is_refused(tmp_path: Path) -> None:
    save_edit(tmp_path / "edit.json", FeatureEdit((1,)), splice())
    with pytest.raises(ModelError, match="other weights"):
        load_edit(tmp_path / "edit.json", splice(seed=1))
    with pytest.raises(ModelError, match=r"expected an SAE at blocks\.0.*got one at blocks\.1"):
        load_edit(tmp_path / "edit.json", splice(hook_name="blocks.1.hook_resid_post"))


def test_the_digest_sees_every_parameter() -> None:
    digests = {weights_digest(splice().sae)}
    for name, _ in splice().sae.named_parameters():
        changed = splice()
        dict(changed.sae.named_parameters())[name].data.flatten()[0] += 1e-3
        digests.add(weights_digest(changed.sae))
    assert len(digests) == 1 + len(list(splice().sae.named_parameters()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "expected an edit in the format"),
        ({"edit": {"kind": "features", "features": "many"}}, "damaged edit"),
        ({"gate": {"kind": "moon"}}, "as gate, got 'moon'"),
        ({"edit": {"kind": "moon", "features": [1]}}, "as edit, got 'moon'"),
        (
            {"edit": {"kind": "clamp", "features": [1], "values": [], "where": "fires"}},
            "damaged edit.*one value for each feature",
        ),
        (
            {"edit": {"kind": "directions", "basis": [[1.0, 1.0]], "center": [0.0, 0.0], "multiplier": 0}},
            "expected orthonormal directions",
        ),
        ({"gate": {"kind": "sequence_rate", "features": [1]}}, "damaged edit"),
        ({"sae": {}}, "damaged edit"),
    ],
)
def test_what_is_no_edit_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "edit.json"
    save_edit(path, FeatureEdit((1,)), splice())
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message):
        load_edit(path, splice())


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        *(
            ("edit", "features", f)
            for f in ([-1], [16], [1.5], [True], ["2"], "12", [None], [[1]], [1e30], 3, None, {}, [10**400])
        ),
        *(("edit", "multiplier", m) for m in (math.nan, math.inf, "1", True, None, 1e30, [])),
        *(("gate", "features", f) for f in ([-1, 3], [1, 16], [1.0, 3], "13")),
        *(("gate", "weights", w) for w in ([math.nan, 1], [1, math.inf], [1, None], [1, {}], [1, 1e30])),
        pytest.param("gate", "weights", [1], marks=pytest.mark.wrong_shapes),
        *(("gate", "decay", d) for d in (5, 1, -0.1, math.nan, "0.5", False)),
        *(("gate", "threshold", t) for t in (math.nan, math.inf, None, "0")),
        ("gate", "more", 1),
    ],
)
def test_numbers_that_no_edit_can_have_are_refused(part: str, name: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "edit.json"
    save_edit(path, FeatureEdit((1, 2), 1.0, RUNNING), splice())
    content = json.loads(path.read_text())
    content[part][name] = value
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"damaged edit \(") as caught:
        load_edit(path, splice())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.wrong_shapes
@pytest.mark.parametrize(
    "edit",
    [
        {"kind": "clamp", "features": [1], "values": [math.nan], "where": "fires"},
        {"kind": "clamp", "features": [1], "values": [1.0], "where": "sometimes"},
        {"kind": "directions", "basis": [[1.0, 0.0]], "center": [0.0, 0.0], "multiplier": 0},
        {"kind": "directions", "basis": [[1.0] + [0.0] * 7], "center": [0.0] * 7, "multiplier": 0},
        {"kind": "directions", "basis": [[1.0] + [0.0] * 7, [1.0]], "center": [0.0] * 8, "multiplier": 0},
        {"kind": "directions", "basis": [1.0], "center": [0.0] * 8, "multiplier": 0},
        {"kind": "directions", "basis": [], "center": [0.0] * 7, "multiplier": 0},
        {"kind": ["features"], "features": [1], "multiplier": 0},
        [],
        None,
        "features",
    ],
)
def test_other_edits_that_cannot_be(edit: Any, tmp_path: Path) -> None:
    path = tmp_path / "edit.json"
    save_edit(path, FeatureEdit((1,)), splice())
    path.write_text(json.dumps(json.loads(path.read_text()) | {"edit": edit}))
    with pytest.raises(DataError, match="damaged edit"):
        load_edit(path, splice())


@pytest.mark.parametrize(
    "content", [DEEP, '{"format": "mtsae-edit-2", "edit": ' + DEEP + "}", "[]", "null", "3", "", "\x00", "9" * 5000]
)
def test_json_that_is_no_edit(content: str, tmp_path: Path) -> None:
    (tmp_path / "edit.json").write_text(content)
    with pytest.raises(DataError) as caught:
        load_edit(tmp_path / "edit.json", splice())
    assert len(str(caught.value)) < 400


def test_files_that_are_no_plain_or_no_small_ones(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(10**10)  # a sparse file
    (tmp_path / "latin").write_bytes(b'{"format": "\xff"}')
    for name in ("pipe", "huge", "latin", "."):
        with pytest.raises(DataError):
            load_edit(tmp_path / name, splice())


def test_an_edit_of_another_architecture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "edit.json"
    save_edit(path, FeatureEdit((1,)), splice())
    content = json.loads(path.read_text())
    content["sae"]["architecture"] = "topk"
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="an SAE of architecture 'topk', as the edit was made for, got 'mtsae'"):
        load_edit(path, splice())


def changed_weights(model: Any, scale: float) -> Any:
    changed, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    for parameter in changed.parameters():
        parameter.data += scale * torch.randn(parameter.shape, generator=generator)
    return changed


def test_an_edit_knows_its_language_model(lm: HookedLM, half_lm: HookedLM, tiny_model_dir: Path, tmp_path: Path) -> None:
    """Other implementations of the same model are recognized, other weights under the same name are refused unless the caller allows them."""
    path, edit = tmp_path / "edit.json", FeatureEdit((1,))
    save_edit(path, edit, lm)
    bridge = load_language_model(f"bridge:{tiny_model_dir}")
    for model in (lm.model, half_lm.model, bridge):
        assert load_edit(path, lm.splice, model=model) == edit
    changed = changed_weights(lm.model, 0.05)
    message = r"expected bert-t5-gemma, the language model that .* got bert-t5-gemma \(other predictions: .* nats on average\)"
    for place, options in ((replace(lm, model=changed), {}), (lm.splice, {"model": changed})):
        with pytest.raises(ModelError, match=message + ".*--allow-other-model") as caught:
            load_edit(path, place, **options)
        assert "\n" not in str(caught.value)
        with pytest.warns(MTSAEWarning, match="another model .* measurements of the edit may not hold here"):
            assert load_edit(path, place, allow_other_model=True, **options) == edit


def test_a_language_model_that_cannot_read_the_tokens_is_another_one(
    lm: HookedLM, tmp_path: Path, save_neox: Callable[..., Path]
) -> None:
    save_edit(tmp_path / "edit.json", FeatureEdit((1,)), lm)
    short = load_language_model(str(save_neox(tmp_path / "short", max_position_embeddings=8)))
    with pytest.raises(ModelError, match=r"got short \(another vocabulary or a shorter context\)"):
        load_edit(tmp_path / "edit.json", lm.splice, model=short)


def test_an_edit_without_a_recorded_language_model_fits_every_one(lm: HookedLM, tmp_path: Path) -> None:
    """Files that were written before the language model was recorded, and those that `save_edit` wrote for a `Splice`, name none."""
    save_edit(tmp_path / "edit.json", FeatureEdit((1,)), lm.splice)
    elsewhere = replace(lm, model=changed_weights(lm.model, 0.05))
    assert load_edit(tmp_path / "edit.json", elsewhere) == FeatureEdit((1,))
    save_edit(tmp_path / "edit.json", FeatureEdit((1,)), lm)
    content = json.loads((tmp_path / "edit.json").read_text())
    del content["model"]
    (tmp_path / "edit.json").write_text(json.dumps(content))
    assert load_edit(tmp_path / "edit.json", elsewhere) == FeatureEdit((1,))


@pytest.mark.parametrize(
    ("dtypes", "difference", "same"),
    [
        (("float32", "float32"), 0.015, True),
        (("float32", "float32"), 0.03, False),
        (("float32", "float16"), 0.03, True),
        (("float16", "float32"), 0.1, False),
        (("bfloat16", "float32"), 0.2, True),
        (("float16", "bfloat16"), 0.3, False),
        (("float32", "float32"), math.nan, False),
    ],
)
def test_how_different_two_dtypes_of_one_model_may_be(
    lm: HookedLM, dtypes: tuple[str, str], difference: float, same: bool
) -> None:
    """The mean difference counts: here half of the log-probabilities differ by twice as much, and the others not at all."""
    model = SimpleNamespace(cfg=copy.copy(lm.model.cfg))
    recorded = identify(lm.model)
    model.cfg.dtype = getattr(torch, dtypes[1])
    n = len(recorded.log_probs)
    moved = [value + (difference * n / (n // 2) if place < n // 2 else 0) for place, value in enumerate(recorded.log_probs)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_identity, "_log_probs", lambda model, tokens: moved)
        found = recorded.model_copy(update={"dtype": dtypes[0]}).difference(model)
    assert (found is None) == same
    if not same:
        assert found == pytest.approx(difference, nan_ok=True)


def test_a_path_may_be_a_string(lm: HookedLM, tmp_path: Path) -> None:
    edit = FeatureEdit((1, 2), 0.5)
    save_edit(str(tmp_path / "edit.json"), edit, lm.splice)
    assert load_edit(str(tmp_path / "edit.json"), lm.splice) == edit


def test_a_file_that_is_missing_or_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        load_edit(tmp_path / "edit.json", splice())
    (tmp_path / "edit.json").write_text("{")
    with pytest.raises(DataError, match="expected JSON"):
        load_edit(tmp_path / "edit.json", splice())
