"""Test edits that the decoder of an SAE with memory carries on: those of SAELens's own hook, wherever an edit can be applied."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.saes.sae import SAEMetadata
from torch import Tensor

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.token_tables import read_tokens
from mtsae_lens.errors import ConfigError
from mtsae_lens.sae.memory_streaming import encode_from
from mtsae_lens.splice.direction_edits import orthonormal_rows
from mtsae_lens.splice.edit_files import load_edit, save_edit
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.splice.edits import FeatureClamp, FeatureEdit
from mtsae_lens.splice.error_edits import CombinedEdit, ErrorEdit
from mtsae_lens.splice.gate_interface import Gate
from mtsae_lens.splice.gates import AlwaysOpen, FeatureActiveGate, RunningEvidenceGate
from mtsae_lens.splice.generation import StreamingEdit
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.sae_state import SAEState
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
    "two parts": CombinedEdit((FeatureEdit(FEATURES, 3.0, carried=True), FeatureClamp((30, 40), (4.0, 5.0), carried=True))),
}


def sae_with_memory(context_size: int = 64) -> MTSAE:
    metadata = SAEMetadata(hook_name="blocks.0.hook_resid_post")
    sae = MTSAE(
        MTSAEConfig(
            d_in=D_IN, d_sae=D_SAE, k=8, context_size=context_size, dilations=(0,), memory="predictive", metadata=metadata
        )
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in sae.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    sae.W_memory_out.data *= 0.009  # a recursion that grows would leave float32
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
    options = {"max_new_tokens": 24, "do_sample": False, "stop_at_eos": False}
    cached, reread = (remembering.generate(tokens, edit, use_past_kv_cache=cache, **options) for cache in (True, False))
    assert torch.equal(cached, reread)
    assert not torch.equal(cached, remembering.generate(tokens, replace(edit, carried=False), **options))


@dataclass(frozen=True)
class Halve(Edit):
    """An edit from outside, written as `docs/how-to/own-edit.md` says."""

    factor: float = 0.5
    gate: Gate = field(default_factory=AlwaysOpen)

    def delta(self, sae_state: SAEState) -> Tensor:
        return sae_state.decode_change(self.factor * sae_state.feature_acts)


@torch.no_grad()
def test_an_edit_of_nothing_from_outside_changes_nothing_with_the_cache(remembering: HookedLM) -> None:
    h = remembering.activations(prompts(remembering.model, N))
    streaming = StreamingEdit(remembering.splice, Halve(1.0))
    pieces = [streaming(h[:, :7]), *(streaming(h[:, t : t + 1]) for t in range(7, N))]
    torch.testing.assert_close(torch.cat(pieces, dim=1), h)


BEYOND = {
    **EDITS,
    "from outside": Halve(),
    "at its position": FeatureEdit(FEATURES, 3.0),
    "error": EDITS["combined"].parts[1],  # type: ignore[attr-defined]
}


def remembering_beyond_its_contexts(model: Any) -> HookedLM:
    """A context of the SAE's training ends after 16 positions. Its running averages do not: at a decay of 0.95 they reach further back."""
    sae = sae_with_memory(16)
    assert max(sae.cfg.memory_decays) > 0.9
    return HookedLM(model, Splice(sae), ContextCutter(model.tokenizer, 16))


@torch.no_grad()
@pytest.mark.parametrize("gate", ["always", "running"])
@pytest.mark.parametrize("kind", BEYOND)
def test_position_by_position_is_the_whole_context_at_any_length(kind: str, gate: str, tiny_model: Any) -> None:
    lm, n = remembering_beyond_its_contexts(tiny_model), 60
    tokens = prompts(tiny_model, n)
    edit = replace(BEYOND[kind], gate=GATES[gate])  # type: ignore[type-var]
    h = lm.activations(tokens)
    streaming = StreamingEdit(lm.splice, edit)
    pieces = [streaming(h[:, :7]), *(streaming(h[:, t : t + 1]) for t in range(7, n))]
    whole = lm.splice.edited(h, edit, lm.masked(tokens))
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(whole[:, 40:], h[:, 40:], atol=0.1)


@pytest.mark.parametrize("carried", [False, True])
def test_padded_prompts_are_continued_beyond_a_context_as_each_alone(carried: bool, tiny_model: Any) -> None:
    lm, whole = remembering_beyond_its_contexts(tiny_model), prompts(tiny_model, 9)
    alone = [row[None, :length] for row, length in zip(whole, (9, 4, 2), strict=True)]
    pad = tiny_model.tokenizer.pad_token_id
    padded = torch.cat([torch.nn.functional.pad(prompt, (9 - prompt.shape[1], 0), value=pad) for prompt in alone])
    edit = FeatureEdit(FEATURES, 3.0, GATES["running"], carried=carried)
    options = {"max_new_tokens": 18, "do_sample": False, "stop_at_eos": False}
    cached, reread = (lm.generate(padded, edit, use_past_kv_cache=cache, **options) for cache in (True, False))
    assert torch.equal(cached, reread)
    for prompt, text in zip(alone, cached, strict=True):
        assert torch.equal(text[9 - prompt.shape[1] :], lm.generate(prompt, edit, **options)[0])
    assert not torch.equal(cached, lm.generate(padded, None, **options))


def test_a_new_position_is_read_alone(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, read = remembering_beyond_its_contexts(tiny_model), []
    encode_token = MTSAE.encode_token
    monkeypatch.setattr(MTSAE, "encode_token", lambda sae, x, walls: read.append(len(x)) or encode_token(sae, x, walls))
    lm.generate(prompts(tiny_model, 9), EDITS["two parts"], max_new_tokens=20, do_sample=False, stop_at_eos=False)
    assert read == [3] * (9 + 19)  # once for each position of the prompt, and once for each new token that is read


@torch.no_grad()
def test_a_carried_edit_without_its_state_is_refused_in_the_middle_of_a_context() -> None:
    splice, h = Splice(sae_with_memory()), activations()
    h[:, 0] = 0  # as generation begins
    acts, past = encode_from(splice.sae, h[:, :9], None)
    later, _ = encode_from(splice.sae, h[:, 9:], past)
    state = splice.sae_state(h[:, 9:], later, past)
    open_at = torch.ones(later.shape[:2], dtype=torch.bool)
    edit = FeatureEdit(FEATURES, 2.0, carried=True)
    with pytest.raises(ConfigError, match="give what change_from returned"):
        edit.change(state, open_at)
    _, own = edit.change_from(splice.sae_state(h[:, :9], acts), open_at[:, :9], None)
    whole = edit.change(splice.sae_state(h, splice.feature_acts(h)), torch.ones(3, N, dtype=torch.bool))
    torch.testing.assert_close(edit.change_from(state, open_at, own)[0], whole[:, 9:], atol=1e-5, rtol=1e-4)
    kept = torch.tensor([False, True, True])
    torch.testing.assert_close(state.rows(kept).sae_out, state.sae_out[kept])


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
