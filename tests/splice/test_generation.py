"""Test that the KV cache does not change what is generated with an edit."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import TopKSAE, TopKSAEConfig
from stored import position_0
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.errors import ConfigError, ModelError
from mtsae_lens.splice.direction_edits import DirectionEdit, orthonormal_rows
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.splice.edits import FeatureClamp, FeatureEdit
from mtsae_lens.splice.error_edits import CombinedEdit, ErrorEdit
from mtsae_lens.splice.evidence_gates import DecayedMeanGate, TwoStateGate
from mtsae_lens.splice.gate_interface import Gate
from mtsae_lens.splice.gates import AlwaysOpen, FeatureActiveGate, RunningEvidenceGate, SequenceRateGate
from mtsae_lens.splice.generation import StreamingEdit
from mtsae_lens.splice.group_gate import KnownGroupsGate
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.splicing import Splice

HOOK = "blocks.0.hook_resid_post"
N_NEW = 12


def hooked_lm(model: Any, **settings: Any) -> HookedLM:
    defaults = {"d_in": model.cfg.d_model, "d_sae": 48, "k": 8, "context_size": 64, "context_gain": 1.0, "dilations": (0, 1, 3)}
    sae = MTSAE(MTSAEConfig(**(defaults | settings)))
    generator = torch.Generator().manual_seed(0)
    for parameter in sae.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    if sae.has_memory:  # a recursion that grows would leave float32
        sae.W_memory_in.data *= 0.1
        sae.W_memory_out.data *= 0.3
    sae.cfg.metadata.hook_name = HOOK
    return HookedLM(model, Splice(sae), ContextCutter(model.tokenizer, 64))


def prompts(model: Any, n_positions: int) -> torch.Tensor:
    tokens = torch.randint(10, model.cfg.d_vocab, (3, n_positions), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = model.tokenizer.bos_token_id
    return tokens


TWO_WEIGHTS = torch.linspace(-0.5, 0.9, 48).view(2, 24)
GATES: dict[str, Gate] = {
    "always": AlwaysOpen(),
    "running": RunningEvidenceGate(torch.arange(24), torch.ones(24), decay=0.8, threshold=11.0),
    "active": FeatureActiveGate(torch.arange(0, 48, 12)),
    "two_state": TwoStateGate("features", torch.arange(24), TWO_WEIGHTS, torch.tensor([-3.5, -3.5]), 0.0, 0.1, 0.2),
    "groups": KnownGroupsGate(
        torch.linspace(-0.1, 0.03, 96).view(3, 32), torch.zeros(32), torch.eye(3), torch.full((3, 3), 0.5), torch.ones(3), 0.0
    ),
    "mean": DecayedMeanGate(
        "activations", torch.tensor([], dtype=torch.long), torch.linspace(-1, 1, 32)[None], torch.zeros(1), 0.0, 0.8
    ),
}


def edit_of_kind(kind: str, gate: Gate, d_in: int) -> Edit:
    basis = orthonormal_rows(torch.randn(8, d_in, generator=torch.Generator().manual_seed(0)))
    if kind == "directions":
        return DirectionEdit(basis, torch.full((d_in,), 2.0), 2.0, gate)
    if kind == "error":
        return ErrorEdit(basis, torch.full((d_in,), 2.0), 2.0, gate)
    if kind == "combined":
        return CombinedEdit((FeatureEdit(tuple(range(24)), 3.0), ErrorEdit(basis, torch.full((d_in,), 2.0))), gate)
    return FeatureClamp(tuple(range(24)), (-6.0,) * 24, kind, gate)  # type: ignore[arg-type]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("n_positions", [1, 2, 9])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"skip_first_position": False},
        {"learn_dilations": True, "max_lag": 20},
        {"dilations": (0,)},
        {"dilations": (0,), "memory": "predictive"},
    ],
    ids=str,
)
def test_the_cache_changes_no_token(tiny_model: Any, settings: dict[str, Any], n_positions: int, gate: str) -> None:
    lm, tokens = hooked_lm(tiny_model, **settings), prompts(tiny_model, n_positions)
    edit = FeatureEdit(tuple(range(48)), multiplier=3.0, gate=GATES[gate])
    options = {"max_new_tokens": N_NEW, "do_sample": False, "stop_at_eos": False}
    cached, reread = (lm.generate(tokens, edit, use_past_kv_cache=cache, **options) for cache in (True, False))
    assert torch.equal(cached, reread)
    assert cached.shape == (3, n_positions + N_NEW)
    assert not torch.equal(cached, lm.generate(tokens, None, **options))  # the edit does something


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("kind", ["fires", "any_fires", "everywhere", "directions", "error", "combined"])
def test_the_cache_changes_no_token_of_any_edit(tiny_model: Any, kind: str, gate: str) -> None:
    lm, tokens = hooked_lm(tiny_model), prompts(tiny_model, 5)
    edit = edit_of_kind(kind, GATES[gate], tiny_model.cfg.d_model)
    options = {"max_new_tokens": N_NEW, "do_sample": False, "stop_at_eos": False}
    cached, reread = (lm.generate(tokens, edit, use_past_kv_cache=cache, **options) for cache in (True, False))
    assert torch.equal(cached, reread)
    assert not torch.equal(cached, lm.generate(tokens, None, **options))
    assert torch.equal(lm.generate(tokens, edit, **options), cached)  # nothing is left behind in the edit


@pytest.mark.parametrize("kind", ["error", "combined"])
def test_the_error_of_an_sae_with_memory_needs_its_past(tiny_model: Any, kind: str) -> None:
    lm, tokens = hooked_lm(tiny_model, dilations=(0,), memory="predictive"), prompts(tiny_model, 5)
    edit = edit_of_kind(kind, GATES["running"], tiny_model.cfg.d_model)
    options = {"max_new_tokens": N_NEW, "do_sample": False, "stop_at_eos": False}
    cached, reread = (lm.generate(tokens, edit, use_past_kv_cache=cache, **options) for cache in (True, False))
    assert torch.equal(cached, reread)
    assert not torch.equal(cached, lm.generate(tokens, None, **options))


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("kind", ["fires", "everywhere", "directions", "error", "combined"])
def test_any_edit_position_by_position_is_the_whole_context(tiny_model: Any, kind: str, gate: str) -> None:
    lm, tokens = hooked_lm(tiny_model), prompts(tiny_model, 20)
    edit = edit_of_kind(kind, GATES[gate], tiny_model.cfg.d_model)
    h = lm.activations(tokens)
    streaming = StreamingEdit(lm.splice, edit)
    pieces = [streaming(h[:, :7]), *(streaming(h[:, t : t + 1]) for t in range(7, 20))]
    whole = lm.splice.edited(h, edit, lm.masked(tokens))
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-4, rtol=1e-4)
    assert torch.equal(whole[:, 0], h[:, 0])
    assert not torch.allclose(whole[:, 7:], h[:, 7:])


def test_a_gate_that_looks_ahead_cannot_generate(tiny_model: Any) -> None:
    lm = hooked_lm(tiny_model)
    edit = FeatureClamp((1,), (0.0,), gate=SequenceRateGate(torch.tensor([1]), 0.1))
    with pytest.raises(ConfigError, match="give the edit a causal gate"):
        lm.generate(prompts(tiny_model, 5), edit)


def test_position_by_position_is_the_whole_context(tiny_model: Any) -> None:
    lm, tokens = hooked_lm(tiny_model), prompts(tiny_model, 20)
    edit = FeatureEdit((1, 5, 9), multiplier=2.0, gate=GATES["running"])
    h = lm.activations(tokens)
    streaming = StreamingEdit(lm.splice, edit)
    pieces = [streaming(h[:, :7]), *(streaming(h[:, t : t + 1]) for t in range(7, 20))]
    torch.testing.assert_close(torch.cat(pieces, dim=1), lm.splice.edited(h, edit))


def test_a_pointwise_sae_reads_a_row_of_zeros_that_is_not_masked(tiny_model: Any) -> None:
    torch.manual_seed(0)
    sae = TopKSAE(TopKSAEConfig(d_in=tiny_model.cfg.d_model, d_sae=48, k=8))
    for parameter in (sae.W_enc, sae.W_dec, sae.b_enc):
        parameter.data.normal_()
    sae.cfg.metadata.hook_name = HOOK
    splice, edit = Splice(sae), FeatureEdit(tuple(range(48)), multiplier=2.0)
    h = torch.randn(2, 9, tiny_model.cfg.d_model)
    h[:, 5] = 0
    streaming = StreamingEdit(splice, edit)
    edited = torch.cat([streaming(h[:, :4]), *(streaming(h[:, t : t + 1]) for t in range(4, 9))], dim=1)
    torch.testing.assert_close(edited, splice.edited(h, edit, position_0(h)))
    assert edited[:, 5].any()


def test_a_stream_that_forgets_its_past_is_another(tiny_model: Any) -> None:
    lm, tokens = hooked_lm(tiny_model), prompts(tiny_model, 20)
    edit = FeatureEdit(tuple(range(48)), multiplier=2.0)
    h = lm.activations(tokens)
    streaming = StreamingEdit(lm.splice, edit)
    streaming(h[:, :19])
    streaming._past, streaming._past_walls = streaming._past[:, -1:], streaming._past_walls[:, -1:]  # type: ignore[index]
    assert not torch.allclose(streaming(h[:, 19:]), lm.splice.edited(h, edit)[:, 19:], atol=1e-4)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("bos", [True, False])
def test_padding_changes_nothing(tiny_model: Any, bos: bool, cache: bool) -> None:
    """Prompts of several lengths at once are as each alone; the padding token is also the BOS."""
    lm, whole = hooked_lm(tiny_model), prompts(tiny_model, 9)
    lm = replace(lm, cutter=replace(lm.cutter, prepend_bos=bos))
    lengths = (9, 4, 2)
    alone = [row[None, :length] if bos else row[None, 1 : length + 1] for row, length in zip(whole, lengths, strict=True)]
    width = max(prompt.shape[1] for prompt in alone)
    pad = tiny_model.tokenizer.pad_token_id
    padded = torch.cat([functional.pad(prompt, (width - prompt.shape[1], 0), value=pad) for prompt in alone])
    edit = FeatureEdit(tuple(range(48)), multiplier=3.0, gate=GATES["running"])
    options = {"max_new_tokens": N_NEW, "do_sample": False, "stop_at_eos": False, "use_past_kv_cache": cache}
    texts = lm.generate(padded, edit, **options)
    assert torch.equal(texts[:, :width], padded)
    for prompt, text in zip(alone, texts, strict=True):
        assert torch.equal(text[width - prompt.shape[1] :], lm.generate(prompt, edit, **options)[0])


def test_an_edit_of_nothing_generates_what_the_model_does(tiny_model: Any) -> None:
    lm, tokens = hooked_lm(tiny_model), prompts(tiny_model, 5)
    options = {"max_new_tokens": N_NEW, "do_sample": False, "stop_at_eos": False}
    assert torch.equal(lm.generate(tokens, FeatureEdit(()), **options), lm.generate(tokens, None, **options))


def test_an_encoder_that_reads_the_future_is_refused(tiny_model: Any) -> None:
    lm = hooked_lm(tiny_model, padding="circular")
    with pytest.raises(ConfigError, match="which reads later positions"):
        lm.generate(prompts(tiny_model, 5), FeatureEdit((1,)))


@pytest.fixture(scope="module")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Any:
    """A model with absolute positions."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 4096, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    folder = tmp_path_factory.mktemp("gpt2")
    GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.2, bos_token_id=0, eos_token_id=0)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model_dir / name, folder)
    return load_language_model(str(folder))


@pytest.mark.parametrize("positions", ["rotary", "absolute"])
@pytest.mark.parametrize("end", ["lone BOS", "padding at the end", "no padding token"])
@pytest.mark.parametrize("use_past_kv_cache", [True, False])
@pytest.mark.parametrize("edited", [False, True])
def test_every_token_of_a_prompt_is_read(
    request: pytest.FixtureRequest, positions: str, end: str, use_past_kv_cache: bool, edited: bool
) -> None:
    """As one token after another by the whole model; TransformerLens would take the prompt's last token for padding."""
    model = request.getfixturevalue({"rotary": "tiny_model", "absolute": "tiny_gpt2"}[positions])
    lm = hooked_lm(model)
    tokenizer = model.tokenizer
    tokens = prompts(model, 1 if end == "lone BOS" else 6)
    tokens[:, -1] = tokenizer.pad_token_id
    edit = FeatureEdit(tuple(range(48)), multiplier=3.0)
    expected = tokens
    for _ in range(N_NEW):
        h = lm.activations(expected)
        masked = torch.zeros_like(expected, dtype=torch.bool)
        masked[:, : tokens.shape[1]] = lm.masked(tokens)
        logits = lm.logits_from(expected, lm.splice.edited(h, edit, masked) if edited and expected.shape[1] > 1 else h)
        expected = torch.cat([expected, logits[:, -1:].argmax(dim=-1)], dim=1)
    options = {"max_new_tokens": N_NEW, "do_sample": False, "use_past_kv_cache": use_past_kv_cache}
    pad = tokenizer.pad_token
    try:
        if end == "no padding token":
            tokenizer.pad_token = None
        got = lm.generate(tokens, edit if edited else None, stop_at_eos=False, **options)
    finally:
        tokenizer.pad_token = pad
    assert torch.equal(got, expected)
    assert model.tokenizer is tokenizer


def test_generation_ends_at_the_tokenizers_own_end(tiny_model: Any) -> None:
    class EndsAt:
        def __init__(self, token: int) -> None:
            self.eos_token_id = token

    lm, tokens = hooked_lm(tiny_model), prompts(tiny_model, 5)[:1]
    options = {"max_new_tokens": N_NEW, "do_sample": False}
    written = lm.generate(tokens, stop_at_eos=False, **options)
    tokenizer = tiny_model.tokenizer
    try:
        tiny_model.tokenizer = EndsAt(int(written[0, 7]))
        ended = lm.generate(tokens, **options)
    finally:
        tiny_model.tokenizer = tokenizer
    first = int((written[0, 5:] == written[0, 7]).nonzero()[0]) + 5
    assert torch.equal(ended[0], written[0, : first + 1])


@pytest.mark.parametrize("kind", ["", "bridge:"])
def test_what_generate_is_asked_for(tiny_model_dir: Path, kind: str) -> None:
    lm = hooked_lm(load_language_model(f"{kind}{tiny_model_dir}"))
    tokens, edit = prompts(lm.model, 5), FeatureEdit((1, 2), 3.0)
    for chosen in (None, edit):
        assert torch.equal(lm.generate(tokens, chosen, max_new_tokens=0), tokens)
        longest = lm.generate(tokens, chosen, max_new_tokens=59, do_sample=False, stop_at_eos=False)
        assert longest.shape == (3, 64)
        for options, message in (
            (
                {"max_new_tokens": 60},
                r"at most 64 tokens, the model's context, got 5 prompt tokens and 60 new ones; .*max_new_tokens=59",
            ),
            ({"max_new_tokens": -1}, "at least 0, got -1"),
            ({"max_new_tokens": 2.0}, r"an integer of at least 0, got 2\.0"),
            ({"max_new_tokens": True}, "got True"),
            ({"max_new_token": 3}, r"expected an option of generate, got 'max_new_token'\. Did you mean 'max_new_tokens'"),
            ({"return_type": "embeds"}, "'tokens' or 'str', got 'embeds'"),
        ):
            with pytest.raises(ConfigError, match=message) as refused:
                lm.generate(tokens, chosen, **options)
            assert "\n" not in str(refused.value)
    text = lm.generate(tokens[:1], edit, max_new_tokens=4, do_sample=False, stop_at_eos=False, return_type="str")
    written = lm.generate(tokens[:1], edit, max_new_tokens=4, do_sample=False, stop_at_eos=False)
    assert text == lm.cutter.tokenizer.decode(written[0], skip_special_tokens=True)
    eos = lm.model.tokenizer.eos_token
    try:
        lm.model.tokenizer.eos_token = None
        assert lm.generate(tokens, edit, max_new_tokens=2).shape == (3, 7)
        with pytest.raises(ConfigError, match="expected an EOS token for stop_at_eos"):
            lm.generate(tokens, edit, max_new_tokens=2, stop_at_eos=True)
    finally:
        lm.model.tokenizer.eos_token = eos


def test_the_model_is_not_changed_meanwhile(tiny_model: Any) -> None:
    """A hook may tokenize, run the model and generate while the model generates."""
    lm, tokens = hooked_lm(tiny_model), prompts(tiny_model, 5)
    padded = torch.cat([tokens[:1], functional.pad(tokens[1:2, :3], (2, 0))])
    tokenizer, prepends, inner = tiny_model.tokenizer, tiny_model.cfg.default_prepend_bos, list[Any]()
    options = {"max_new_tokens": 3, "do_sample": False, "stop_at_eos": False}
    expected = lm.generate(tokens, None, **options)

    def look(h: torch.Tensor, hook: Any) -> None:
        if not inner:
            inner.append(None)
            assert tiny_model.tokenizer is tokenizer
            assert tiny_model.cfg.default_prepend_bos == prepends
            inner[0] = lm.generate(padded, None, **options)

    with tiny_model.hooks(fwd_hooks=[(HOOK, look)]):
        assert torch.equal(lm.generate(tokens, None, **options), expected)
    assert torch.equal(inner[0], lm.generate(padded, None, **options))


def test_a_hook_that_generation_does_not_run_is_refused(tiny_model: Any) -> None:
    lm = hooked_lm(tiny_model)
    lm.sae.cfg.metadata.hook_name = "hook_embed"
    with pytest.raises(ModelError, match="got hook_embed, where an edit changes nothing"):
        lm.check_generates()


def test_check_generates_lets_others_pass(tiny_model: Any) -> None:
    hooked_lm(tiny_model).check_generates()
    with pytest.raises(ConfigError, match="reads later positions"):
        hooked_lm(tiny_model, padding="circular").check_generates()
