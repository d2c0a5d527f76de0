"""Generation with an edit in place: the KV cache changes nothing but the time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.errors import ConfigError
from mtsae_lens.splice.edits import DirectionEdit, Edit, FeatureClamp, FeatureEdit, Splice, orthonormal_rows
from mtsae_lens.splice.gates import AlwaysOpen, FeatureActiveGate, Gate, RunningEvidenceGate, SequenceRateGate
from mtsae_lens.splice.generation import StreamingEdit
from mtsae_lens.splice.hooked_lm import HookedLM

HOOK = "blocks.0.hook_resid_post"
N_NEW = 12


def hooked_lm(model: Any, **settings: Any) -> HookedLM:
    defaults = {"d_in": model.cfg.d_model, "d_sae": 48, "k": 8, "context_size": 64, "context_gain": 1.0, "dilations": (0, 1, 3)}
    sae = MTSAE(MTSAEConfig(**(defaults | settings)))
    generator = torch.Generator().manual_seed(0)
    for parameter in sae.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    sae.cfg.metadata.hook_name = HOOK
    return HookedLM(model, Splice(sae), ContextCutter(model.tokenizer, 64))


def prompts(model: Any, n_positions: int) -> torch.Tensor:
    tokens = torch.randint(10, model.cfg.d_vocab, (3, n_positions), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = model.tokenizer.bos_token_id
    return tokens


GATES: dict[str, Gate] = {
    "always": AlwaysOpen(),
    "running": RunningEvidenceGate(torch.arange(24), torch.ones(24), decay=0.8, threshold=11.0),
    "active": FeatureActiveGate(torch.arange(0, 48, 12)),
}


def edit_of_kind(kind: str, gate: Gate, d_in: int) -> Edit:
    if kind == "directions":
        basis = orthonormal_rows(torch.randn(8, d_in, generator=torch.Generator().manual_seed(0)))
        return DirectionEdit(basis, torch.full((d_in,), 2.0), 2.0, gate)
    return FeatureClamp(tuple(range(24)), (-6.0,) * 24, kind, gate)  # type: ignore[arg-type]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("n_positions", [1, 2, 9])
@pytest.mark.parametrize(
    "settings", [{}, {"skip_first_position": False}, {"learn_dilations": True, "max_lag": 20}, {"dilations": (0,)}], ids=str
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
@pytest.mark.parametrize("kind", ["fires", "any_fires", "everywhere", "directions"])
def test_the_cache_changes_no_token_of_any_edit(tiny_model: Any, kind: str, gate: str) -> None:
    lm, tokens = hooked_lm(tiny_model), prompts(tiny_model, 5)
    edit = edit_of_kind(kind, GATES[gate], tiny_model.cfg.d_model)
    options = {"max_new_tokens": N_NEW, "do_sample": False, "stop_at_eos": False}
    cached, reread = (lm.generate(tokens, edit, use_past_kv_cache=cache, **options) for cache in (True, False))
    assert torch.equal(cached, reread)
    assert not torch.equal(cached, lm.generate(tokens, None, **options))
    assert torch.equal(lm.generate(tokens, edit, **options), cached)  # nothing is left behind in the edit


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("kind", ["fires", "everywhere", "directions"])
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


def test_a_stream_that_forgets_its_past_is_another(tiny_model: Any) -> None:
    lm, tokens = hooked_lm(tiny_model), prompts(tiny_model, 20)
    edit = FeatureEdit(tuple(range(48)), multiplier=2.0)
    h = lm.activations(tokens)
    streaming = StreamingEdit(lm.splice, edit)
    streaming(h[:, :19])
    streaming._past = streaming._past[:, -1:]  # type: ignore[index]
    assert not torch.allclose(streaming(h[:, 19:]), lm.splice.edited(h, edit)[:, 19:], atol=1e-4)


@pytest.mark.parametrize("cache", [True, False])
def test_padding_changes_nothing(tiny_model: Any, monkeypatch: pytest.MonkeyPatch, cache: bool) -> None:
    monkeypatch.setattr(tiny_model.tokenizer, "padding_side", "left")
    lm, tokens = hooked_lm(tiny_model), prompts(tiny_model, 9)
    padded = torch.cat([torch.full((3, 6), tiny_model.tokenizer.pad_token_id), tokens], dim=1)
    edit = FeatureEdit(tuple(range(48)), multiplier=3.0, gate=GATES["running"])

    def generated(prompt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens, and the edited activations of the prompt and the token after it."""
        seen: list[torch.Tensor] = []
        with tiny_model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", lambda h, hook: seen.append(h))]):
            text = lm.generate(prompt, edit, max_new_tokens=2, do_sample=False, stop_at_eos=False, use_past_kv_cache=cache)
        return text, torch.cat([seen[0], seen[1][:, -1:]], dim=1)

    text, h = generated(padded)
    text_alone, h_alone = generated(tokens)
    assert torch.equal(text[:, 6:], text_alone)
    torch.testing.assert_close(h[:, 6:], h_alone, atol=1e-3, rtol=1e-3)


def test_an_edit_of_nothing_generates_what_the_model_does(tiny_model: Any) -> None:
    lm, tokens = hooked_lm(tiny_model), prompts(tiny_model, 5)
    options = {"max_new_tokens": N_NEW, "do_sample": False, "stop_at_eos": False}
    assert torch.equal(lm.generate(tokens, FeatureEdit(()), **options), lm.generate(tokens, None, **options))


def test_an_encoder_that_reads_the_future_is_refused(tiny_model: Any) -> None:
    lm = hooked_lm(tiny_model, padding="circular")
    with pytest.raises(ConfigError, match="reads later positions, which do not exist yet"):
        lm.generate(prompts(tiny_model, 5), FeatureEdit((1,)))
