"""Test edits that the decoder of an SAE with memory carries on: those of SAELens's own hook, wherever an edit can be applied."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.saes.sae import SAEMetadata
from torch import Tensor

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.token_tables import read_tokens
from mtsae_lens.splice.direction_edits import orthonormal_rows
from mtsae_lens.splice.edit_files import load_edit, save_edit
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.splice.edits import FeatureClamp, FeatureEdit
from mtsae_lens.splice.error_edits import CombinedEdit, ErrorEdit
from mtsae_lens.splice.gate_interface import Gate
from mtsae_lens.splice.gates import AlwaysOpen, FeatureActiveGate, RunningEvidenceGate
from mtsae_lens.splice.generation import StreamingEdit
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.splicing import Splice, open_positions
from mtsae_lens.unlearning.measures.effects import edited_logits, measure_edits

D_IN, D_SAE, N = 32, 48, 24
FEATURES = tuple(range(24))
GATES: dict[str, Gate] = {
    "always": AlwaysOpen(),
    "active": FeatureActiveGate(torch.arange(0, 48, 12)),
    "running": RunningEvidenceGate(torch.arange(24), torch.ones(24), decay=0.8, threshold=11.0),
}
EDITS: dict[str, Edit] = {
    "features": FeatureEdit(FEATURES, 3.0, carried=True),
    "ablation": FeatureEdit(FEATURES, 0.0, carried=True),
    "fires": FeatureClamp(FEATURES, (-6.0,) * 24, carried=True),
    "everywhere": FeatureClamp(FEATURES, (-2.0,) * 24, "everywhere", carried=True),
    "combined": CombinedEdit(
        (
            FeatureEdit(FEATURES, 3.0, carried=True),
            ErrorEdit(orthonormal_rows(torch.randn(4, D_IN, generator=torch.Generator().manual_seed(5))), torch.ones(D_IN)),
        )
    ),
}


def sae_with_memory() -> MTSAE:
    metadata = SAEMetadata(hook_name="blocks.0.hook_resid_post")
    sae = MTSAE(
        MTSAEConfig(d_in=D_IN, d_sae=D_SAE, k=8, context_size=64, dilations=(0,), memory="predictive", metadata=metadata)
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in sae.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    sae.W_memory_in.data *= 0.1  # a recursion that grows would leave float32
    sae.W_memory_out.data *= 0.3
    return sae


def activations() -> Tensor:
    h = torch.randn(3, N, D_IN, generator=torch.Generator().manual_seed(1))
    h[1, 9] = 0  # a wall ends the past
    return h


@pytest.fixture
def remembering(tiny_model: Any) -> HookedLM:
    return HookedLM(tiny_model, Splice(sae_with_memory()), ContextCutter(tiny_model.tokenizer, 64), batch_size=2)


def prompts(model: Any, n_positions: int) -> Tensor:
    tokens = torch.randint(10, model.cfg.d_vocab, (3, n_positions), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = model.tokenizer.bos_token_id
    return tokens


@torch.no_grad()
@pytest.mark.parametrize("kind", ["features", "ablation", "fires", "everywhere"])
def test_it_is_the_edit_of_saelens_hook(kind: str) -> None:
    sae, h, edit = sae_with_memory(), activations(), EDITS[kind]
    is_wall = (h == 0).all(dim=-1)
    is_wall[:, 0] = True  # a masked position has no feature to edit

    def change(feature_acts: Tensor, hook: Any) -> Tensor:
        return torch.where(is_wall.unsqueeze(-1), feature_acts, edit.apply(feature_acts))  # type: ignore[attr-defined]

    hooked = sae.run_with_hooks(h, fwd_hooks=[("hook_sae_acts_post", change)])
    expected = h + hooked - sae(h)
    torch.testing.assert_close(Splice(sae).edited(h, edit, is_wall), expected, atol=1e-4, rtol=1e-4)
    alone = Splice(sae).edited(h, replace(edit, carried=False), is_wall)  # type: ignore[type-var]
    assert not torch.allclose(alone, expected, atol=0.05)


@torch.no_grad()
def test_one_edited_position_changes_only_itself_and_later_ones_up_to_a_wall() -> None:
    sae, h = sae_with_memory(), activations()
    where = torch.zeros(3, N, dtype=torch.bool)
    where[:, 5] = True
    for carried in (False, True):
        edit = FeatureEdit(FEATURES, 2.0, carried=carried)
        moved = (Splice(sae).edited(h, edit, where=where) - h).norm(dim=-1) > 1e-6
        assert not moved[:, :5].any()
        assert moved[:, 5].all()
        assert moved[:, 6:9].all() == carried
        assert moved[0, 9:].any() == carried
        assert not moved[1, 9:].any()


@torch.no_grad()
def test_behind_a_gate_only_features_at_open_positions_are_edited() -> None:
    splice, h, gate = Splice(sae_with_memory()), activations(), GATES["active"]
    acts = splice.feature_acts(h)
    edit = FeatureEdit(FEATURES, 2.0, gate, carried=True)
    (open_at,) = open_positions(splice.sae_state(h, acts), [edit])
    assert open_at.any()
    assert not open_at.all()
    edited = torch.where(open_at.unsqueeze(-1), edit.apply(acts), acts)
    change = splice.sae.decode(edited) - splice.sae.decode(acts)
    torch.testing.assert_close(splice.edited(h, edit), h + change)
    assert (change.norm(dim=-1)[~open_at] > 1e-3).any()  # a closed gate does not stop what was changed before


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("kind", EDITS)
def test_position_by_position_is_the_whole_context(kind: str, gate: str, remembering: HookedLM) -> None:
    tokens = prompts(remembering.model, N)
    edit = replace(EDITS[kind], gate=GATES[gate])  # type: ignore[type-var]
    h = remembering.activations(tokens)
    streaming = StreamingEdit(remembering.splice, edit)
    pieces = [streaming(h[:, :7]), *(streaming(h[:, t : t + 1]) for t in range(7, N))]
    whole = remembering.splice.edited(h, edit, remembering.masked(tokens))
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(whole, h)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("n_positions", [1, 9])
def test_the_cache_changes_no_token(gate: str, n_positions: int, remembering: HookedLM) -> None:
    tokens = prompts(remembering.model, n_positions)
    edit = FeatureEdit(FEATURES, 3.0, GATES[gate], carried=True)
    options = {"max_new_tokens": 12, "do_sample": False, "stop_at_eos": False}
    cached, reread = (remembering.generate(tokens, edit, use_past_kv_cache=cache, **options) for cache in (True, False))
    assert torch.equal(cached, reread)
    assert not torch.equal(cached, remembering.generate(tokens, replace(edit, carried=False), **options))


@torch.no_grad()
def test_what_is_measured_is_the_model_with_the_hook(remembering: HookedLM, text_file: Path) -> None:
    table = read_tokens(str(text_file), "test", remembering.cutter, 4)
    edit = FeatureEdit(FEATURES, 3.0, GATES["running"], carried=True)
    both = (edit, replace(edit, carried=False))
    measured = measure_edits(remembering, table, both)
    for effect, of in zip(measured, both, strict=True):
        nll = n = 0.0
        for row in table.tokens:
            logits = edited_logits(remembering, of)(row[None])
            nll_of_row = -logits[0, :-1].log_softmax(dim=-1).gather(-1, row[1:, None])[:, 0]
            nll, n = nll + float(nll_of_row.sum()), n + len(nll_of_row)
        assert effect.mean(effect.nll_edited) == pytest.approx(nll / n, rel=1e-3)
    assert measured[0].nll_delta != pytest.approx(measured[1].nll_delta, abs=1e-4)


@pytest.mark.parametrize("kind", EDITS)
def test_it_is_saved_and_others_are_saved_as_before(kind: str, tmp_path: Path) -> None:
    splice, edit = Splice(sae_with_memory()), EDITS[kind]
    save_edit(tmp_path / "edit.json", edit, splice)
    assert load_edit(tmp_path / "edit.json", splice) == edit
    save_edit(tmp_path / "plain.json", FeatureEdit(FEATURES, 3.0), splice)
    assert json.loads((tmp_path / "plain.json").read_text())["edit"].keys() == {"kind", "features", "multiplier"}
    assert load_edit(tmp_path / "plain.json", splice) != EDITS["features"]


def test_the_description_says_so() -> None:
    assert "carries the change on" in EDITS["features"].describe()
    assert "carries" not in FeatureEdit(FEATURES).describe()
