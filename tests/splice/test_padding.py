"""Test that prompts of different lengths, padded on the left, are read, measured and continued as if alone, in every kind of model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.data import padding as padding_module
from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.errors import DataError, ModelError
from mtsae_lens.evaluation.fidelity import evaluate_fidelity
from mtsae_lens.exploration.firings import read_batch
from mtsae_lens.exploration.model_attribution import attribute_to_tokens
from mtsae_lens.exploration.peaks import Peaks
from mtsae_lens.splice.attribution import attribution
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.evidence_gates import DecayedMeanGate, TwoStateGate
from mtsae_lens.splice.gates import RunningEvidenceGate
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.splicing import Splice
from mtsae_lens.unlearning.finetuning.batches import Batch, mixed_batches
from mtsae_lens.unlearning.finetuning.losses import context_nll
from mtsae_lens.unlearning.measures.effects import as_logits, edited_logits, max_identity_error, measure_edits, measure_model

LENGTHS = (11, 6, 3)
TWO_WEIGHTS = torch.linspace(-0.5, 0.9, 48).view(2, 24)
EDIT = FeatureEdit(tuple(range(48)), 3.0, RunningEvidenceGate(torch.arange(24), torch.ones(24), decay=0.8, threshold=4.0))
GREEDY = {"max_new_tokens": 8, "do_sample": False, "stop_at_eos": False}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
KINDS = ("neox", "llama", "gpt2", "bridge:neox", "bridge:llama", "bridge:gpt2", "bridge:mistral", "bridge:gemma3")


@pytest.fixture(scope="module")
def model_of(
    tmp_path_factory: pytest.TempPathFactory, save_neox: Callable[..., Path], save_llama: Callable[..., Path]
) -> Callable[[str], Any]:
    """`model_of("bridge:gpt2")`: rotary and absolute positions, grouped heads, windows shorter than the prompts."""
    folder, models = tmp_path_factory.mktemp("padding"), dict[str, Any]()
    tokenizer = save_neox(folder / "neox")
    save_llama(folder / "llama", num_attention_heads=4, num_key_value_heads=2)
    sizes = {"vocab_size": 4096, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.2}
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(**sizes, n_embd=32, n_layer=2, n_head=2, n_positions=64)).save_pretrained(folder / "gpt2")
    sizes |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": 64, "sliding_window": 4}
    MistralForCausalLM(MistralConfig(**sizes)).save_pretrained(folder / "mistral")
    windows = {"layer_types": ["sliding_attention", "full_attention"], "head_dim": 8}
    Gemma3ForCausalLM(Gemma3TextConfig(**sizes, **windows)).save_pretrained(folder / "gemma3")
    for name in ("gpt2", "mistral", "gemma3"):
        for file in tokenizer.glob("tokenizer*"):
            (folder / name / file.name).write_bytes(file.read_bytes())

    def model(kind: str) -> Any:
        if kind not in models:
            bridge, _, family = kind.rpartition(":")
            models[kind] = load_language_model(f"{bridge}:{folder / family}" if bridge else str(folder / family))
        return models[kind]

    return model


@pytest.fixture
def lm_of(model_of: Callable[[str], Any]) -> Callable[..., HookedLM]:
    """`lm_of(kind, bos, pad)`: random features at the first layer; what begins a prompt and what pads it."""

    def make(kind: str, bos: bool = True, pad: int = 0) -> HookedLM:
        model = model_of(kind)
        sae = MTSAE(MTSAEConfig(d_in=32, d_sae=48, k=8, context_size=64, context_gain=1.0, dilations=(0, 1, 3)))
        generator = torch.Generator().manual_seed(0)
        for parameter in sae.parameters():
            parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
        sae.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
        tokenizer = copy.deepcopy(model.tokenizer)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
        return HookedLM(model, Splice(sae), ContextCutter(tokenizer, 64, prepend_bos=bos))

    return make


def prompts(bos: bool = True) -> list[torch.Tensor]:
    tokens = torch.randint(10, 4096, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(1))
    if bos:
        tokens[:, 0] = 0
    return [row[None, :length] for row, length in zip(tokens, LENGTHS, strict=True)]


def padded(rows: Sequence[torch.Tensor], pad: int = 0) -> torch.Tensor:
    width = max(row.shape[1] for row in rows)
    return torch.cat([functional.pad(row, (width - row.shape[1], 0), value=pad) for row in rows])


def table(tokens: torch.Tensor, name: str = "prompts") -> TokenTable:
    return TokenTable(name, tokens, tuple(f"document {row}" for row in range(len(tokens))))


@pytest.mark.parametrize("kind", ["features", "activations", "mean"])
@pytest.mark.parametrize("cache", [True, False])
def test_a_gate_of_evidence_reads_a_padded_prompt_as_if_alone(lm_of: Callable[..., HookedLM], kind: str, cache: bool) -> None:
    lm, alone = lm_of("neox"), prompts()
    none, raw = torch.tensor([], dtype=torch.long), torch.linspace(-1, 1, lm.sae.cfg.d_in)[None]
    gate = {
        "features": TwoStateGate("features", torch.arange(24), TWO_WEIGHTS, torch.tensor([-20.0, -20.0]), 0.0, 0.1, 0.2),
        "activations": TwoStateGate("activations", none, raw, torch.tensor([0.1]), 0.5, 0.1, 0.2),
        "mean": DecayedMeanGate("activations", none, raw, torch.zeros(1), 0.0, 0.8),
    }[kind]
    edit, tokens, options = FeatureEdit(tuple(range(48)), 3.0, gate), padded(alone), GREEDY | {"use_past_kv_cache": cache}
    written, effect = lm.generate(tokens, edit, **options), measure_edits(lm, table(tokens), [edit])[0]
    assert 0 < effect.gate_open < 1
    for row, (text, prompt) in enumerate(zip(written, alone, strict=True)):
        assert torch.equal(text[tokens.shape[1] - prompt.shape[1] :], lm.generate(prompt, edit, **options)[0])
        assert_close(effect.nll_edited[row], measure_edits(lm, table(prompt), [edit])[0].nll_edited[0], atol=1e-4, rtol=1e-4)
    assert not torch.equal(written, lm.generate(tokens, None, **options))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("bos", "pad"), [(True, 0), (True, 7), (False, 0), (False, 7)], ids=["pad is BOS", "own", "no BOS", "neither"]
)
def test_what_is_read_and_measured(lm_of: Callable[..., HookedLM], kind: str, bos: bool, pad: int) -> None:
    lm, alone = lm_of(kind, bos, pad), prompts(bos)
    tokens = padded(alone, pad)
    h, feature_acts, reading = lm.activations(tokens), lm.feature_acts(tokens), read_batch(lm, tokens)
    logits = lm.logits_from(tokens, h)
    assert feature_acts[2].any()
    effect = measure_edits(lm, table(tokens), [EDIT])[0]
    assert effect.nll_delta != 0
    for row, prompt in enumerate(alone):
        start = tokens.shape[1] - prompt.shape[1]
        assert_close(h[row, start:], lm.activations(prompt)[0], **CLOSE)
        assert_close(feature_acts[row, start:], lm.feature_acts(prompt)[0], **CLOSE)
        assert not feature_acts[row, : start + 1].any()
        assert_close(reading.hidden_pre[row, start + 1 :], read_batch(lm, prompt).hidden_pre[0, 1:], **CLOSE)
        assert_close(logits[row, start:], lm.logits_from(prompt, lm.activations(prompt))[0], atol=1e-4, rtol=1e-4)
        (expected,) = measure_edits(lm, table(prompt), [EDIT])
        for name in ("n_tokens", "nll_clean", "nll_edited", "kl", "hits"):
            assert_close(getattr(effect, name)[row], getattr(expected, name)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("bos", "pad"), [(True, 0), (True, 7), (False, 7)], ids=["pad is BOS", "own", "no BOS"])
@pytest.mark.parametrize("cache", [True, False])
def test_what_is_written(lm_of: Callable[..., HookedLM], kind: str, bos: bool, pad: int, cache: bool) -> None:
    lm, alone = lm_of(kind, bos, pad), prompts(bos)
    tokens = padded(alone, pad)
    options = GREEDY | {"use_past_kv_cache": cache}
    for edit in (None, EDIT):
        written = lm.generate(tokens, edit, **options)
        assert torch.equal(written[:, : tokens.shape[1]], tokens)
        for row, prompt in zip(written, alone, strict=True):
            assert torch.equal(row[tokens.shape[1] - prompt.shape[1] :], lm.generate(prompt, edit, **options)[0])
    assert not torch.equal(written, lm.generate(tokens, None, **options))


@pytest.mark.parametrize("kind", ["neox", "bridge:gpt2"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_tokenizers_side_changes_nothing(lm_of: Callable[..., HookedLM], kind: str, side: str) -> None:
    """`HookedTransformer` takes a lone BOS for padding where its tokenizer pads on the left and both are one token."""
    lm, alone = lm_of(kind), prompts()
    expected = [lm.activations(prompt)[0] for prompt in alone]
    before = lm.model.tokenizer.padding_side
    lm.model.tokenizer.padding_side = lm.cutter.tokenizer.padding_side = side
    try:
        for prompt, h in zip(alone, expected, strict=True):
            assert_close(lm.activations(prompt)[0], h, **CLOSE)
        for row, h in zip(lm.activations(padded(alone)), expected, strict=True):
            assert_close(row[-len(h) :], h, **CLOSE)
        logits = lm.logits_from(alone[0], lm.activations(alone[0]))
        assert_close(logits, lm.model(alone[0], prepend_bos=False, attention_mask=torch.ones_like(alone[0])))
    finally:
        lm.model.tokenizer.padding_side = before


@pytest.mark.parametrize("kind", ["neox", "gpt2", "bridge:gpt2", "bridge:llama"])
def test_other_measures(lm_of: Callable[..., HookedLM], kind: str) -> None:
    """Attribution, another model's loss, an edit of other weights, and the first-order effect of the input tokens."""
    lm, alone = lm_of(kind), prompts()
    tokens = padded(alone)
    n_tokens = torch.tensor([length - 1 for length in LENGTHS])
    shares = [attribution(lm, table(prompt)) * n for prompt, n in zip(alone, n_tokens, strict=True)]
    assert_close(attribution(lm, table(tokens)), torch.stack(shares).sum(0) / n_tokens.sum(), atol=1e-5, rtol=1e-3)
    assert max_identity_error(lm, table(tokens)) < 1e-4
    for logits in (as_logits(lm.model, lm.cutter), edited_logits(lm, EDIT)):
        effect = measure_model(logits, lm.model, lm.cutter, table(tokens))
        for row, prompt in enumerate(alone):
            expected = measure_model(logits, lm.model, lm.cutter, table(prompt))
            assert_close(effect.nll_edited[row], expected.nll_edited[0], atol=1e-4, rtol=1e-4)
    if kind.startswith("bridge"):
        return
    row, length = 2, LENGTHS[2]
    start = tokens.shape[1] - length

    def peak(tokens: torch.Tensor, context: int, position: int) -> Peaks:
        feature, rank = torch.tensor([5]), torch.tensor([0])
        return Peaks(feature, rank, torch.tensor([position]), torch.tensor([context]), tokens)

    found = attribute_to_tokens(lm, peak(tokens, row, start + 2), 2, 0)
    assert_close(found, attribute_to_tokens(lm, peak(alone[row], 0, 2), 2, 0), atol=1e-4, rtol=1e-3)


def test_finetuning(lm_of: Callable[..., HookedLM]) -> None:
    lm, alone = lm_of("gpt2"), prompts()
    short, wide = table(padded(alone)), table(torch.randint(10, 4096, (1, 20), generator=torch.Generator().manual_seed(3)))
    batch = next(iter(mixed_batches([short, wide], lm.cutter, 6, seed=0)))
    found = {int(row.tokens[10]): float(loss) for row, loss in zip(_rows(batch), context_nll(lm.model, batch), strict=True)}
    for prompt in alone:
        (single,) = measure_model(as_logits(lm.model), lm.model, lm.cutter, table(prompt)).nll_clean
        assert found[int(prompt[0, -1])] == pytest.approx(float(single), rel=1e-4)


def _rows(batch: Any) -> list[Any]:
    return [Batch(*row) for row in zip(batch.tokens, batch.counted, batch.padding, strict=True)]


@pytest.mark.parametrize("kind", ["neox", "bridge:gpt2"])
def test_padding_on_the_right_needs_nothing_but_to_be_continued(lm_of: Callable[..., HookedLM], kind: str) -> None:
    lm, alone = lm_of(kind), prompts()
    tokens = torch.cat([functional.pad(prompt, (0, max(LENGTHS) - prompt.shape[1])) for prompt in alone])
    for row, prompt in zip(lm.feature_acts(tokens), alone, strict=True):
        assert_close(row[: prompt.shape[1]], lm.feature_acts(prompt)[0], **CLOSE)
        assert not row[prompt.shape[1] :].any()
    with pytest.raises(DataError, match=r"prompt 1 of the batch padded on the right.*padding_side=\"left\"") as refused:
        lm.generate(tokens, None, **GREEDY)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["neox", "bridge:neox"])
def test_rows_of_padding_alone(lm_of: Callable[..., HookedLM], kind: str) -> None:
    tokens = padded([*prompts(bos=False), torch.tensor([[7, 7]])], pad=7)
    lm = lm_of(kind, bos=False, pad=7)
    assert not lm.feature_acts(tokens)[3].any()
    assert measure_edits(lm, table(tokens), [EDIT])[0].n_tokens.tolist() == [10, 5, 2, 0]
    with pytest.raises(DataError, match="only padding in prompt 3 of the batch"):
        lm.generate(tokens, EDIT, **GREEDY)
    only_bos = padded([*prompts(), torch.tensor([[0]])])  # which is a prompt: text follows the BOS
    lm = lm_of(kind)
    assert torch.equal(lm.generate(only_bos, EDIT, **GREEDY)[3, -9:], lm.generate(only_bos[3:, -1:], EDIT, **GREEDY)[0])


def test_a_separator_at_the_start_of_a_whole_context_is_text(lm_of: Callable[..., HookedLM]) -> None:
    """As training reads it, though it is the padding token too; behind a tokenizer that pads on the left it is padding."""
    text = torch.randint(10, 4096, (1, 64), generator=torch.Generator().manual_seed(1))
    for bos, start in ((True, [0, 0]), (False, [0])):
        context = torch.cat([torch.tensor([start]), text[:, len(start) :]], dim=1)
        cutter = lm_of("neox", bos).cutter
        assert not cutter.left_padding(context).any()
        assert cutter.left_padding(context[:, :40]).sum() == 1
        cutter.tokenizer.padding_side = "left"
        assert cutter.left_padding(context).sum() == 1


def test_a_prompt_beside_one_as_long_as_a_context_is_continued_as_alone(lm_of: Callable[..., HookedLM]) -> None:
    """In a batch of prompts one leading padding token is padding, also if the batch is as wide as a context."""
    text = torch.randint(10, 4096, (1, 24), generator=torch.Generator().manual_seed(1))
    long, short = (torch.cat([torch.tensor([[0]]), text[:, first:]], dim=1) for first in (0, 1))
    for width in (24, 25, 26):
        lm = lm_of("neox")
        lm = replace(lm, cutter=replace(lm.cutter, context_size=width))
        for edit in (None, EDIT):
            found = lm.generate(padded([long, short]), edit, **GREEDY)[1, -8:]
            assert found.tolist() == lm.generate(short, edit, **GREEDY)[0, -8:].tolist(), width


def test_a_model_that_reads_padding_is_refused(lm_of: Callable[..., HookedLM], monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose forward pass ignores the mask is refused."""
    lm = lm_of("bridge:gpt2")
    forward = type(lm.model).forward
    monkeypatch.setattr(padding_module, "_probed", set())
    monkeypatch.setattr(
        type(lm.model), "forward", lambda self, tokens, attention_mask=None, **options: forward(self, tokens, **options)
    )
    for call in (lm.activations, lm.feature_acts, lm.generate):
        with pytest.raises(ModelError, match=r"equal logits with and without padding.* give prompts of one length") as refused:
            call(padded(prompts()))
        assert "\n" not in str(refused.value)
    lm.activations(prompts()[0])  # without padding nothing is asked


def test_saelens_evaluation_of_padded_contexts_is_refused(lm_of: Callable[..., HookedLM]) -> None:
    """It calls the model without a mask."""
    lm = lm_of("neox")
    with pytest.raises(DataError, match=r"prompts: expected contexts without padding on the left, .*; pad on the right"):
        evaluate_fidelity(lm.sae, lm.model, lm.cutter, table(padded(prompts())))


def test_a_call_of_the_model_itself(lm_of: Callable[..., HookedLM]) -> None:
    """As `docs/concepts.md` says it."""
    lm, alone = lm_of("bridge:llama"), prompts()
    tokens = padded(alone)
    with lm.model.hooks(fwd_hooks=[lm.splice.hook(EDIT, lm.masked(tokens))]):
        logits = lm.model(tokens, **lm.attention_options(tokens))
    for row, prompt in zip(logits, alone, strict=True):
        edited = lm.splice.edited(lm.activations(prompt), EDIT, lm.masked(prompt))
        assert_close(row[-prompt.shape[1] :], lm.logits_from(prompt, edited)[0], atol=1e-4, rtol=1e-4)
