"""Test a float32 SAE in a model in half precision: an empty edit is the identity bit for bit, and only sums and logits are rounded."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.saes.sae import SAEMetadata

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.data.lazy_logits import token_nll
from mtsae_lens.data.token_tables import TokenTable, read_tokens
from mtsae_lens.splice.attribution import loss_change
from mtsae_lens.splice.direction_edits import DirectionEdit
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.splice.edits import FeatureClamp, FeatureEdit
from mtsae_lens.splice.gates import RunningEvidenceGate
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.splicing import Splice
from mtsae_lens.unlearning.measures.effects import max_identity_error, measure_edits

NOTHING: list[Edit] = [FeatureEdit(()), FeatureEdit((0, 3, 5), multiplier=-1.0), FeatureClamp((), ())]


@pytest.fixture(scope="module")
def table(half_lm: HookedLM, text_file: Path) -> TokenTable:
    return read_tokens(str(text_file), "test", half_lm.cutter, 6)


def random_lm(lm: HookedLM, hook_name: str, **settings: Any) -> HookedLM:
    metadata = SAEMetadata(hook_name=hook_name, hook_head_index=settings.pop("head", None))
    sae = MTSAE(MTSAEConfig(**{"d_in": 32, "d_sae": 24, "k": 5, "context_size": 32, "metadata": metadata} | settings))
    generator = torch.Generator().manual_seed(1)
    for parameter in sae.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return replace(lm, splice=Splice(sae))


PLACES: list[dict[str, Any]] = [
    {"hook_name": "blocks.0.hook_resid_pre"},
    {"hook_name": "blocks.1.hook_resid_post"},
    {"hook_name": "blocks.0.mlp.hook_post", "d_in": 64},
    {"hook_name": "blocks.1.attn.hook_z", "reshape_activations": "hook_z"},
    {"hook_name": "blocks.1.attn.hook_z", "d_in": 16, "head": 1},
]


@torch.no_grad()
@pytest.mark.parametrize("place", PLACES, ids=lambda place: "-".join(map(str, place.values())))
def test_an_edit_of_nothing_is_the_identity_bit_for_bit(half_lm: HookedLM, table: TokenTable, place: dict[str, Any]) -> None:
    lm = random_lm(half_lm, **place)
    tokens = table.tokens[:3]
    h, masked = lm.activations(tokens), lm.masked(tokens)
    assert h.dtype == torch.bfloat16
    assert lm.feature_acts(tokens, h).dtype == torch.float32
    clean = lm.model(tokens, prepend_bos=False)
    for edit in NOTHING:
        edited = lm.splice.edited(h, edit, masked)
        assert edited.dtype == torch.bfloat16
        assert torch.equal(edited, h)
        with lm.model.hooks(fwd_hooks=[lm.splice.hook(edit, masked)]):
            assert torch.equal(lm.model(tokens, prepend_bos=False), clean)
    assert max_identity_error(lm, table) == 0
    sae_in = lm.splice.as_sae_input(h)
    without_error_term = lm.sae.decode(lm.sae.encode(sae_in)).to(h.dtype)  # a broken variant, which the law refuses
    assert not torch.equal(without_error_term.flatten(), sae_in.to(h.dtype).flatten())


@torch.no_grad()
@pytest.mark.parametrize("place", PLACES, ids=lambda place: "-".join(map(str, place.values())))
def test_an_edit_is_computed_in_float32_and_its_sum_rounded_once(
    half_lm: HookedLM, table: TokenTable, place: dict[str, Any]
) -> None:
    lm = random_lm(half_lm, **place)
    tokens = table.tokens[:3]
    h, masked = lm.activations(tokens), lm.masked(tokens)
    acts = lm.feature_acts(tokens, h)
    assert torch.equal(acts, lm.feature_acts(tokens, h.float()))
    features = tuple(acts.flatten(0, 1).sum(dim=0).topk(4).indices.tolist())
    basis = torch.eye(lm.splice.as_sae_input(h).flatten(2).shape[-1])[:2]
    for edit in (
        FeatureEdit(features, 2.0),
        FeatureClamp(features, (1.0,) * 4),
        DirectionEdit(basis, torch.ones(len(basis.T))),
    ):
        expected = lm.splice.edited(h.float(), edit, masked).bfloat16()
        got = lm.splice.edited(h, edit, masked)
        assert torch.equal(got, expected)
        assert not torch.equal(got, h)


@torch.no_grad()
def test_losses_are_those_of_the_logits_in_float32(half_lm: HookedLM, table: TokenTable) -> None:
    features = tuple(half_lm.feature_acts(table.tokens).flatten(0, 1).sum(dim=0).topk(3).indices.tolist())
    edit = FeatureEdit(features, 2.0)
    (effect,) = measure_edits(half_lm, table, [edit])
    edited_h = half_lm.splice.edited(half_lm.activations(table.tokens), edit, half_lm.masked(table.tokens))
    counted = table.counted(half_lm.cutter)

    def nll(logits: torch.Tensor) -> torch.Tensor:
        log_probs = logits[:, :-1].log_softmax(dim=-1)
        return (token_nll(log_probs, table.tokens[:, 1:]).double() * counted).sum(dim=1)

    for got, logits in (
        (effect.nll_clean, half_lm.model(table.tokens, prepend_bos=False)),
        (effect.nll_edited, half_lm.logits_from(table.tokens, edited_h)),
    ):
        assert logits.dtype == torch.bfloat16
        torch.testing.assert_close(got, nll(logits.float()), atol=1e-3, rtol=0)
        assert (nll(logits) - nll(logits.float())).abs().max() > 0.02  # a loss of bfloat16 log-probabilities
    (unchanged,) = measure_edits(half_lm, table, [FeatureEdit((), 2.0)])
    assert unchanged.nll_delta == unchanged.kl.sum() == 0


def test_attribution_is_near_that_of_the_float32_model(lm: HookedLM, half_lm: HookedLM, table: TokenTable) -> None:
    full, half = (loss_change(hooked, table).first_order for hooked in (lm, half_lm))
    assert half.dtype == torch.float32
    assert torch.corrcoef(torch.stack([full, half]))[0, 1] > 0.99
    assert not torch.equal(full, half)


@pytest.mark.parametrize("use_past_kv_cache", [True, False])
def test_generation_edits_what_a_whole_pass_edits(half_lm: HookedLM, table: TokenTable, use_past_kv_cache: bool) -> None:
    """The activations that the edit leaves behind, position by position; a gate carries its state along."""
    tokens = table.tokens[:2, :10]
    features = torch.tensor(half_lm.feature_acts(tokens).flatten(0, 1).sum(dim=0).topk(6).indices.tolist())
    edit = FeatureEdit(tuple(features.tolist()), 3.0, RunningEvidenceGate(features, torch.ones(6), decay=0.5, threshold=1.2))
    options = {"max_new_tokens": 6, "do_sample": False, "stop_at_eos": False, "use_past_kv_cache": use_past_kv_cache}
    nothing = half_lm.generate(tokens, FeatureEdit(()), **options)
    assert torch.equal(nothing, half_lm.generate(tokens, **options))
    written = half_lm.generate(tokens, edit, **options)
    with half_lm.model.hooks(fwd_hooks=[half_lm.splice.hook(edit, half_lm.masked(written))]):
        logits = half_lm.model(written, prepend_bos=False)[:, 9:-1].float()
    chosen = logits.gather(-1, written[:, 10:, None])[..., 0]
    assert (logits.amax(dim=-1) - chosen).max() < 0.1  # the likeliest, or as likely up to rounding
    assert not torch.equal(written, nothing)


@torch.no_grad()
def test_an_sae_less_precise_than_the_model_reads_as_before(lm: HookedLM, table: TokenTable) -> None:
    sae = copy.deepcopy(lm.sae)
    sae.to(torch.bfloat16)  # type: ignore[arg-type]
    sae.dtype = torch.bfloat16
    h = lm.activations(table.tokens)
    assert Splice(sae).as_sae_input(h) is h
    assert Splice(sae).feature_acts(h).dtype == torch.bfloat16
