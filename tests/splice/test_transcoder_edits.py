"""Test edits of a transcoder: features are read at one hook, and changed at the one that it decodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import (
    JumpReLUSkipTranscoder,
    JumpReLUSkipTranscoderConfig,
    SkipTranscoder,
    SkipTranscoderConfig,
    Transcoder,
    TranscoderConfig,
)
from torch import Tensor

from mtsae_lens import MTSAETranscoder, MTSAETranscoderConfig
from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.errors import ConfigError, DataError, ModelError
from mtsae_lens.exploration.ablation import measure_ablation
from mtsae_lens.exploration.peaks import Peaks
from mtsae_lens.splice.attribution import attribution
from mtsae_lens.splice.direction_edits import DirectionEdit, orthonormal_rows
from mtsae_lens.splice.edit_files import load_edit, save_edit
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.error_edits import ErrorEdit
from mtsae_lens.splice.evidence_gates import DecayedMeanGate
from mtsae_lens.splice.gate_interface import Gate
from mtsae_lens.splice.gates import AlwaysOpen, FeatureActiveGate
from mtsae_lens.splice.hook_checks import check_order_in
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.scoring import score_continuations
from mtsae_lens.splice.splicing import Splice
from mtsae_lens.unlearning.gating import observe
from mtsae_lens.unlearning.measures.effects import measure_edits
from mtsae_lens.unlearning.observed import reader
from mtsae_lens.unlearning.recovery.blindness import read_by
from mtsae_lens.unlearning.recovery.perturbation import Target, mean_norm
from mtsae_lens.unlearning.recovery.replay import PARTS, replayed_states
from mtsae_lens.unlearning.selection.directions import mean_input

READ = "blocks.0.hook_resid_pre"
DECODED = ("blocks.1.hook_attn_out", "blocks.1.mlp.hook_pre", "blocks.0.hook_resid_post", "blocks.1.attn.hook_z")
CONTEXT = 32
D_SAE = 48


def transcoder(model: Any, decoded: str, read: str = READ) -> HookedLM:
    """Return a random temporal transcoder between two hooks of a model."""
    d_out = 64 if decoded.endswith("hook_pre") else model.cfg.d_model
    cfg = MTSAETranscoderConfig(
        d_in=model.cfg.d_model, d_out=d_out, d_sae=D_SAE, k=8, context_size=CONTEXT, context_gain=1.0, dilations=(0, 1, 3)
    )
    return placed(MTSAETranscoder(cfg), model, decoded, read)


def placed(sae: Any, model: Any, decoded: str, read: str = READ) -> HookedLM:
    generator = torch.Generator().manual_seed(0)
    for parameter in sae.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    sae.cfg.metadata.hook_name, sae.cfg.metadata.hook_name_out = read, decoded
    return HookedLM(model, Splice(sae), ContextCutter(model.tokenizer, CONTEXT))


def contexts(model: Any, n: int = 4) -> Tensor:
    tokens = torch.randint(10, model.cfg.d_vocab, (n, CONTEXT), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = model.tokenizer.bos_token_id
    return tokens


GATES: dict[str, Gate] = {
    "always": AlwaysOpen(),
    "features": FeatureActiveGate(torch.arange(0, D_SAE, 12)),
    "activations": DecayedMeanGate(
        "activations", torch.tensor([], dtype=torch.long), torch.linspace(-1, 1, 32)[None], torch.zeros(1), 0.0, 0.8
    ),
}


def by_hand(lm: HookedLM, tokens: Tensor, edit: FeatureEdit) -> tuple[str, Any]:
    """Return a hook that makes the edit of an open gate from the model's own activations, without the splice."""
    _, cache = lm.model.run_with_cache(tokens, names_filter=[READ], prepend_bos=False)
    masked = lm.masked(tokens).unsqueeze(-1)
    e = lm.sae.encode(cache[READ].masked_fill(masked, 0.0))
    delta = (lm.sae.decode(edit.apply(e)) - lm.sae.decode(e)).masked_fill(masked, 0.0)
    return lm.splice.decoded_hook_name, lambda y, hook: y + delta.view_as(y)


@pytest.mark.parametrize("decoded", DECODED)
def test_the_edit_changes_the_decoded_hook_by_what_the_decoder_says(tiny_model: Any, decoded: str) -> None:
    lm, tokens, edit = transcoder(tiny_model, decoded), contexts(tiny_model), FeatureEdit(tuple(range(24)), 2.0)
    options = {"prepend_bos": False}
    expected = lm.model.run_with_hooks(tokens, fwd_hooks=[by_hand(lm, tokens, edit)], **options)
    got = lm.model.run_with_hooks(tokens, fwd_hooks=lm.splice.hooks(edit, lm.masked(tokens)), **options)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    replaced = lm.logits_from(tokens, lm.splice.edited(lm.activations(tokens), edit, lm.masked(tokens)))
    torch.testing.assert_close(replaced, expected, atol=1e-4, rtol=1e-4)
    with lm.splice.attached(lm.model, edit, lm.masked(tokens)):
        torch.testing.assert_close(lm.model(tokens, **options), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(expected, lm.model(tokens, **options), atol=1e-2)


def test_a_transcoder_of_saelens_is_edited_too(tiny_model: Any) -> None:
    cfg = TranscoderConfig(d_in=32, d_out=64, d_sae=D_SAE, apply_b_dec_to_input=False)
    lm = placed(Transcoder(cfg), tiny_model, DECODED[1])
    tokens, edit = contexts(tiny_model), FeatureEdit((3, 5, 7), 2.0)
    expected = lm.model.run_with_hooks(tokens, fwd_hooks=[by_hand(lm, tokens, edit)], prepend_bos=False)
    got = lm.model.run_with_hooks(tokens, fwd_hooks=lm.splice.hooks(edit, lm.masked(tokens)), prepend_bos=False)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("decoded", [DECODED[0], DECODED[2]])
def test_what_is_measured_is_the_model_with_the_hooks(tiny_model: Any, decoded: str, gate: str) -> None:
    lm, tokens = transcoder(tiny_model, decoded), contexts(tiny_model)
    edit = FeatureEdit(tuple(range(24)), 2.0, GATES[gate])
    table = TokenTable("random", tokens, tuple(() for _ in tokens))
    (effect,) = measure_edits(lm, table, [edit])
    hooks = lm.splice.hooks(edit, lm.masked(tokens))
    edited, clean = (lm.model.run_with_hooks(tokens, fwd_hooks=used, prepend_bos=False) for used in (hooks, []))
    nll = [-log.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None]).mean().item() for log in (edited, clean)]
    assert effect.nll_delta == pytest.approx(nll[0] - nll[1], abs=1e-4)
    assert 0 < effect.gate_open <= 1
    assert abs(effect.nll_delta) > 1e-3


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("decoded", [DECODED[0], DECODED[2], DECODED[3]])
def test_the_cache_changes_no_token(tiny_model: Any, decoded: str, gate: str) -> None:
    lm, tokens = transcoder(tiny_model, decoded), contexts(tiny_model, 3)[:, :9]
    edit = FeatureEdit(tuple(range(D_SAE)), 4.0, GATES[gate])
    options = {"max_new_tokens": 12, "do_sample": False, "stop_at_eos": False}
    cached, reread = (lm.generate(tokens, edit, use_past_kv_cache=cache, **options) for cache in (True, False))
    assert torch.equal(cached, reread)
    assert not torch.equal(cached, lm.generate(tokens, None, **options))
    whole = lm.model.run_with_hooks(
        cached[:, :-1], fwd_hooks=lm.splice.hooks(edit, lm.masked(cached[:, :-1])), prepend_bos=False
    )
    assert torch.equal(whole[:, 8:].argmax(dim=-1), cached[:, 9:])


def test_continuations_are_scored_with_the_edit(tiny_model: Any) -> None:
    lm, row = transcoder(tiny_model, DECODED[0]), contexts(tiny_model, 1)
    edit = FeatureEdit(tuple(range(24)), 2.0)
    (score,) = score_continuations(lm, edit, [(row[0, :20].tolist(), row[0, 20:].tolist())])
    hooks = lm.splice.hooks(edit, lm.masked(row))
    log_probs = lm.model.run_with_hooks(row, fwd_hooks=hooks, prepend_bos=False)[0, 19:-1].log_softmax(-1)
    assert score.log_likelihood == pytest.approx(log_probs.gather(-1, row[0, 20:, None]).sum().item(), abs=1e-3)


@pytest.mark.parametrize("width", [32, 64])
def test_directions_are_those_of_the_decoded_hook(tiny_model: Any, width: int, tmp_path: Path) -> None:
    lm, tokens = transcoder(tiny_model, DECODED[0] if width == 32 else DECODED[1]), contexts(tiny_model)
    basis = orthonormal_rows(torch.randn(8, width, generator=torch.Generator().manual_seed(0)))
    y = lm.splice.edited_part(lm.activations(tokens))
    edited = lm.splice.edited_part(lm.splice.edited(lm.activations(tokens), DirectionEdit(basis, torch.zeros(width))))
    torch.testing.assert_close(edited, y - (y @ basis.T) @ basis, atol=1e-5, rtol=1e-5)
    kept = ~lm.masked(tokens)
    table = TokenTable("random", tokens, tuple(() for _ in tokens))
    torch.testing.assert_close(mean_input(lm, table), y[kept].mean(dim=0), atol=1e-5, rtol=1e-5)
    no_error: Edit = ErrorEdit(torch.eye(width), torch.zeros(width))
    alone = lm.splice.edited_part(lm.splice.edited(lm.activations(tokens), no_error, lm.masked(tokens)))
    torch.testing.assert_close(alone[kept], lm.sae.decode(lm.feature_acts(tokens))[kept], atol=1e-5, rtol=1e-5)
    save_edit(tmp_path / "edit.json", no_error, lm)
    assert load_edit(tmp_path / "edit.json", lm).describe() == no_error.describe()
    save_edit(tmp_path / "other.json", ErrorEdit(torch.eye(width + 1), torch.zeros(width + 1)), lm)
    with pytest.raises(DataError, match=f"expected a width of {width}"):
        load_edit(tmp_path / "other.json", lm)


def test_a_gate_reads_what_the_edit_changes(tiny_model: Any) -> None:
    lm, tokens = transcoder(tiny_model, DECODED[0]), contexts(tiny_model)
    h, gate = lm.activations(tokens), GATES["activations"]
    _, cache = lm.model.run_with_cache(tokens, names_filter=[DECODED[0]], prepend_bos=False)
    score = cache[DECODED[0]].masked_fill(lm.masked(tokens).unsqueeze(-1), 0.0)
    expected = gate.open_from(gate.observe(score, lm.feature_acts(tokens)), None)[0] & ~lm.masked(tokens)
    change = lm.splice.edited(h, FeatureEdit(tuple(range(D_SAE)), 2.0, gate), lm.masked(tokens)) - h
    assert torch.equal(change.abs().amax(dim=-1) > 0, expected)
    assert 0.1 < expected.float().mean() < 0.9
    unmasked = lm.splice.edited(h, FeatureEdit(tuple(range(D_SAE)), 2.0, gate)) - h
    without_masks = gate.open_from(gate.observe(cache[DECODED[0]], lm.feature_acts(tokens)), None)[0]
    assert torch.equal((unmasked.abs().amax(dim=-1) > 0)[:, 1:], without_masks[:, 1:])
    torch.testing.assert_close(observe(lm, gate, tokens), score)
    torch.testing.assert_close(reader(lm, "activations")(tokens), score)


def test_contexts_that_a_gate_leaves_out_change_nothing_in_the_others(tiny_model: Any) -> None:
    lm, tokens = transcoder(tiny_model, DECODED[0]), contexts(tiny_model)
    basis = orthonormal_rows(torch.randn(8, 32, generator=torch.Generator().manual_seed(0)))
    n_contexts = (lm.feature_acts(tokens) > 0).any(dim=1).sum(dim=0)
    in_some = ((n_contexts > 0) & (n_contexts < len(tokens))).nonzero()[:1, 0]
    gate = FeatureActiveGate(in_some)
    edit = DirectionEdit(basis, torch.zeros(32), 4.0, gate)
    (effect,) = measure_edits(lm, TokenTable("random", tokens, tuple(() for _ in tokens)), [edit])
    used = (lm.splice.hooks(edit, lm.masked(tokens)), [])
    edited, clean = (
        lm.model.run_with_hooks(tokens, fwd_hooks=hooks, prepend_bos=False).log_softmax(-1)[:, :-1] for hooks in used
    )
    rises = (clean - edited).gather(-1, tokens[:, 1:, None])[..., 0].sum(dim=1)
    torch.testing.assert_close((effect.nll_edited - effect.nll_clean).float(), rises, atol=1e-3, rtol=1e-3)


def test_a_perturbation_of_the_decoded_hook_is_read_by_no_feature(tiny_model: Any) -> None:
    lm, tokens, edit = transcoder(tiny_model, DECODED[1]), contexts(tiny_model), FeatureEdit((1, 2, 3), 2.0)
    assert [len(rows) for rows in read_by(edit, lm.sae)] == [0, 0]
    y = lm.splice.edited_part(lm.activations(tokens))[~lm.masked(tokens)]
    assert mean_norm(lm, TokenTable("random", tokens, tuple(() for _ in tokens))) == pytest.approx(y.norm(dim=-1).mean().item())
    shift = torch.randn(64, generator=torch.Generator().manual_seed(0))
    target = Target(lm, edit)
    whole, error = target.states(tokens, shift), replayed_states(target, tokens, shift, PARTS["error"])
    torch.testing.assert_close(error, whole, atol=1e-4, rtol=1e-4)
    kept, (clean, moved) = ~lm.masked(tokens), (target.states(tokens, torch.zeros(64)), whole)
    torch.testing.assert_close(
        lm.splice.edited_part(moved - clean)[kept], shift.expand(int(kept.sum()), -1), atol=1e-4, rtol=1e-4
    )
    assert torch.equal(lm.splice.as_sae_input(moved), lm.splice.as_sae_input(clean))


def test_ablation_and_attribution_are_of_the_decoded_hook(tiny_model: Any) -> None:
    lm, tokens = transcoder(tiny_model, DECODED[0]), contexts(tiny_model)
    e = lm.feature_acts(tokens)
    context, position = 1, 9
    feature = int(e[context, position].argmax())
    peak = (torch.tensor([number]) for number in (feature, 0, position, context))
    (measured,) = measure_ablation(lm, Peaks(*peak, tokens))

    def ablate(y: Tensor, hook: Any) -> Tensor:
        y = y.clone()
        y[context, position] -= e[context, position, feature] * lm.sae.W_dec[feature]
        return y

    runs = (lm.model.run_with_hooks(tokens, fwd_hooks=used, prepend_bos=False) for used in ([(DECODED[0], ablate)], []))
    edited, clean = (-log.log_softmax(-1)[context, :-1].gather(-1, tokens[context, 1:, None])[:, 0] for log in runs)
    assert measured[0].item() == pytest.approx((edited - clean)[position].item(), abs=1e-4)
    assert measured[1].item() == pytest.approx((edited - clean)[position + 1 :].mean().item(), abs=1e-4)
    table = TokenTable("random", tokens, tuple(() for _ in tokens))
    first = attribution(lm, table)
    step = 1e-2
    (small,) = measure_edits(lm, table, [FeatureEdit((feature,), multiplier=-1 + step)])
    assert small.nll_delta == pytest.approx(step * first[feature].item(), rel=0.05, abs=1e-7)


def test_the_other_order_and_one_hook_are_refused(tiny_model: Any) -> None:
    edit, tokens = FeatureEdit((1,), 2.0), contexts(tiny_model)
    turned = transcoder(tiny_model, READ, read=DECODED[0])
    with pytest.raises(ModelError, match="decodes a later hook than it reads"):
        turned.activations(tokens)
    with pytest.raises(ModelError, match="decodes a later hook than it reads"):
        check_order_in(tiny_model, turned.splice.hook_names)
    with pytest.raises(ModelError, match=f"runs {DECODED[0]}, which the transcoder reads, before {READ}"):
        tiny_model.run_with_hooks(tokens, fwd_hooks=turned.splice.hooks(edit), prepend_bos=False)
    assert turned.feature_acts(tokens).any()  # features can be read in any order
    with pytest.raises(ConfigError, match="read and decoded at one hook"):
        transcoder(tiny_model, DECODED[0]).splice.hook(edit)
    with pytest.raises(ModelError, match="without it"):
        transcoder(tiny_model, "blocks.9.hook_attn_out")
    sae = transcoder(tiny_model, DECODED[0]).sae
    sae.cfg.metadata.hook_name_out = None
    with pytest.raises(ConfigError, match="names the hook that it decodes"):
        Splice(sae)


@pytest.mark.parametrize("prefix", ["", "bridge:"])
@pytest.mark.parametrize(
    "names",
    [
        ("blocks.0.hook_resid_pre", "blocks.0.hook_attn_out"),
        ("blocks.0.ln2.hook_normalized", "blocks.0.hook_mlp_out"),
        ("blocks.0.hook_attn_out", "blocks.1.hook_resid_post"),
        ("blocks.0.attn.hook_z", "blocks.0.hook_attn_out"),
        ("hook_embed", "blocks.1.mlp.hook_post"),
    ],
)
def test_the_order_of_hooks_is_that_of_the_model(tiny_llama_dir: Path, prefix: str, names: tuple[str, str]) -> None:
    model = load_language_model(f"{prefix}{tiny_llama_dir}")
    check_order_in(model, names)
    with pytest.raises(ModelError, match="decodes a later hook than it reads"):
        check_order_in(model, names[::-1])


def test_features_are_read_without_running_the_later_layers(tiny_model: Any) -> None:
    lm, tokens = transcoder(tiny_model, "blocks.1.hook_resid_post"), contexts(tiny_model)
    ran: list[str] = []
    with tiny_model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", lambda h, hook: ran.append(hook.name))]):
        lm.feature_acts(tokens)
        lm.sae_input(tokens)
        assert not ran
        lm.activations(tokens)
    assert ran


def test_other_widths_are_refused(tiny_model: Any) -> None:
    for d_in, d_out in ((40, 24), (24, 40)):
        cfg = MTSAETranscoderConfig(d_in=d_in, d_out=d_out, d_sae=D_SAE, k=8, context_size=CONTEXT)
        lm = placed(MTSAETranscoder(cfg), tiny_model, DECODED[0])
        with pytest.raises(ModelError, match=f"expected a transcoder of the width of {READ}, 32, got one with {d_in}"):
            lm.activations(contexts(tiny_model))


def test_embeddings_are_read_but_not_in_generation(tiny_model: Any) -> None:
    lm, tokens, edit = transcoder(tiny_model, DECODED[0], read="hook_embed"), contexts(tiny_model), FeatureEdit((1, 2, 3), 2.0)
    got = lm.model.run_with_hooks(tokens, fwd_hooks=lm.splice.hooks(edit, lm.masked(tokens)), prepend_bos=False)
    replaced = lm.logits_from(tokens, lm.splice.edited(lm.activations(tokens), edit, lm.masked(tokens)))
    torch.testing.assert_close(got, replaced, atol=1e-5, rtol=1e-5)
    with pytest.raises(ModelError, match=r"generation, which leaves out hook_embed, take blocks\.0\.hook_resid_pre"):
        lm.check_generates()


def test_a_hook_that_runs_for_query_key_and_value_is_edited_each_time(tiny_model: Any) -> None:
    lm, tokens = transcoder(tiny_model, "blocks.1.ln1.hook_normalized"), contexts(tiny_model)
    edit = FeatureEdit(tuple(range(24)), 2.0)
    got = lm.model.run_with_hooks(tokens, fwd_hooks=lm.splice.hooks(edit, lm.masked(tokens)), prepend_bos=False)
    replaced = lm.logits_from(tokens, lm.splice.edited(lm.activations(tokens), edit, lm.masked(tokens)))
    torch.testing.assert_close(got, replaced, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prefix", ["", "bridge:"])
@pytest.mark.parametrize("decoded", ["blocks.0.hook_mlp_out", "blocks.1.hook_resid_post"])
def test_the_layers_after_keep_their_precision(tiny_llama_dir: Path, prefix: str, decoded: str) -> None:
    """TransformerLens keeps what a norm gives in float32 in a model in half precision."""
    model = load_language_model(f"{prefix}{tiny_llama_dir}", dtype="bfloat16")
    lm, tokens = transcoder(model, decoded, read="blocks.0.ln2.hook_normalized"), contexts(model)
    idle, edit = FeatureEdit(()), FeatureEdit(tuple(range(24)), 2.0)
    clean = model(tokens, prepend_bos=False)
    assert torch.equal(model.run_with_hooks(tokens, fwd_hooks=lm.splice.hooks(idle), prepend_bos=False), clean)
    assert torch.equal(lm.logits_from(tokens, lm.activations(tokens)), clean)
    edited = lm.generate(tokens[:, :7], edit, max_new_tokens=4, do_sample=False)
    assert edited.shape == (len(tokens), 11)


@pytest.mark.parametrize("kind", [SkipTranscoder, JumpReLUSkipTranscoder])
def test_what_a_skip_explains_is_not_error(tiny_model: Any, kind: Any) -> None:
    cfg = {SkipTranscoder: SkipTranscoderConfig, JumpReLUSkipTranscoder: JumpReLUSkipTranscoderConfig}[kind]
    lm = placed(kind(cfg(d_in=32, d_out=32, d_sae=D_SAE, apply_b_dec_to_input=False)), tiny_model, DECODED[0])
    tokens = contexts(tiny_model)
    kept, h = ~lm.masked(tokens), lm.activations(tokens)
    left = lm.splice.edited_part(lm.splice.edited(h, ErrorEdit(torch.eye(32), torch.zeros(32)), ~kept))
    torch.testing.assert_close(left[kept], lm.sae(lm.splice.as_sae_input(h))[kept], atol=1e-5, rtol=1e-5)


def test_a_saved_edit_knows_the_hook_that_is_decoded(tiny_model: Any, tmp_path: Path) -> None:
    save_edit(tmp_path / "edit.json", FeatureEdit((1,), 2.0), transcoder(tiny_model, DECODED[0]))
    other = transcoder(tiny_model, "blocks.1.hook_mlp_out")
    with pytest.raises(
        ModelError,
        match=rf"from {READ} to {DECODED[0]}, as the edit was made for, got one from {READ} to blocks\.1\.hook_mlp_out",
    ):
        load_edit(tmp_path / "edit.json", other)
