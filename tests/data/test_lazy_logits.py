"""What is computed from logits in chunks is what is computed from whole logits: in both kinds of models, with and without a soft cap."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

from mtsae_lens.assets import embedded_model_dir
from mtsae_lens.data import lazy_logits as module
from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.data.lazy_logits import LazyLogits, LazyModel, in_chunks, last_position_alone, lazily, lazy_logits

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
_SMALL: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((embedded_model_dir("embedded") / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> dict[str, Path]:
    torch.manual_seed(0)
    capped = Gemma2ForCausalLM(Gemma2Config(**_SMALL, head_dim=16, final_logit_softcapping=0.5, query_pre_attn_scalar=16))
    scaled = GraniteForCausalLM(GraniteConfig(**_SMALL, logits_scaling=7.0))
    folder = tmp_path_factory.mktemp("families")
    return {
        "plain": tiny_model_dir,
        "capped": save(capped, folder / "capped"),
        "scaled": save(scaled, folder / "scaled"),
    }


@pytest.fixture(scope="module", params=["plain", "capped", "bridge:plain", "bridge:capped", "bridge:scaled"])
def model(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Any:
    kind, name = request.param.rpartition(":")[::2]
    return load_language_model(f"{kind}:{folders[name]}") if kind else hooked(folders, name)


def hooked(folders: dict[str, Path], name: str) -> Any:
    """A `HookedTransformer`; TransformerLens reads no folder of a family with a cap, so the cap is set."""
    model: Any = load_language_model(str(folders["plain"]))
    model.cfg.output_logits_soft_cap = 0.5 if name == "capped" else -1.0
    return model


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(1, 4096, (3, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 4 positions, which divide neither 9 nor 24."""
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * 4 * 4096)


def nll_of(logits: Tensor, tokens: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")


def rotate(h: Tensor, hook: Any) -> Tensor:
    return h.roll(1, dims=-1)


@pytest.mark.parametrize(
    "hook", [None, "blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "ln_final.hook_normalized", "unembed.hook_in"]
)
@torch.no_grad()
def test_losses_are_those_of_whole_logits(model: Any, tokens: Tensor, hook: str | None) -> None:
    fwd_hooks = [] if hook is None else [(hook, rotate)]
    logits = model.run_with_hooks(tokens, fwd_hooks=fwd_hooks, prepend_bos=False)
    if hook is not None:
        assert not torch.allclose(logits, model(tokens, prepend_bos=False), atol=1e-3)  # the hook does something
    lazy = lazy_logits(model, tokens, fwd_hooks=fwd_hooks, prepend_bos=False)
    assert lazy.states.shape == (
        3,
        9,
        4096 if hook == "unembed.hook_in" else 32,
    )  # whole logits only where the unembedding is hooked
    assert_close(lazy.whole(), logits, **CLOSE)
    assert_close(lazy[:, :-1].nll(tokens[:, 1:]), nll_of(logits, tokens), **CLOSE)
    some = torch.rand(3, 8, generator=torch.Generator().manual_seed(1)) < 0.5
    assert_close(lazy[:, :-1][some].nll(tokens[:, 1:][some]), nll_of(logits, tokens)[some], **CLOSE)


@pytest.mark.parametrize("hook", ["blocks.1.hook_resid_post", "unembed.hook_in"])
@torch.no_grad()
def test_standing_hooks_run(model: Any, tokens: Tensor, hook: str) -> None:
    with model.hooks(fwd_hooks=[(hook, rotate)]):
        expected = model(tokens, prepend_bos=False)
        assert_close(lazy_logits(model, tokens, prepend_bos=False).whole(), expected, **CLOSE)
    clean = model(tokens, prepend_bos=False)
    assert clean.shape == expected.shape  # nothing stands on the model afterwards
    assert not torch.allclose(clean, expected, atol=1e-3)


@torch.no_grad()
def test_padding(model: Any, tokens: Tensor) -> None:
    mask = torch.ones_like(tokens)
    mask[1, :4] = 0
    lazy = lazy_logits(model, tokens, prepend_bos=False, attention_mask=mask)
    alone = model(tokens[1:2, 4:], prepend_bos=False)
    assert_close(lazy[1, 4:].whole(), alone[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("chunk_rows", [4, 10_000])
def test_gradients(folders: dict[str, Path], tokens: Tensor, chunk_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the residual stream and to every weight, the unembedding's own included; of several chunks and of one."""
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk_rows * 4 * 4096)
    trained = hooked(folders, "capped")
    for parameter in trained.parameters():
        parameter.requires_grad_()

    def gradients(loss: Callable[[], Tensor]) -> list[Tensor]:
        found = torch.autograd.grad(loss(), list(trained.parameters()), allow_unused=True)
        return [gradient for gradient in found if gradient is not None]

    expected = gradients(lambda: nll_of(trained(tokens, prepend_bos=False), tokens).mean())
    got = gradients(lambda: lazy_logits(trained, tokens, prepend_bos=False)[:, :-1].nll(tokens[:, 1:]).mean())
    assert len(got) == len(expected) > 10
    for ours, theirs in zip(got, expected, strict=True):
        assert_close(ours, theirs, **CLOSE)


def test_no_more_than_a_chunk_is_computed_at_once(tokens: Tensor) -> None:
    sizes: list[int] = []
    W_U = torch.randn(8, 4096, requires_grad=True)

    def head(states: Tensor) -> Tensor:
        sizes.append(len(states))
        return states @ W_U

    lazy = LazyLogits(torch.randn(3, 9, 8), head, 4096)
    lazy[:, :-1].nll(tokens[:, 1:]).sum().backward()
    assert sizes == [4] * 12  # 24 positions, forward and again backward
    assert W_U.grad is not None


@torch.no_grad()
def test_two_models_at_once(model: Any, tokens: Tensor) -> None:
    other = lazy_logits(model, tokens, fwd_hooks=[("blocks.0.hook_resid_post", rotate)], prepend_bos=False)
    clean = lazy_logits(model, tokens, prepend_bos=False)
    found = in_chunks(lambda a, b: torch.stack([(a - b).abs().amax(-1), (a * b).sum(-1)], dim=-1), [clean, other])
    a, b = clean.whole(), other.whole()
    assert_close(found, torch.stack([(a - b).abs().amax(-1), (a * b).sum(-1)], dim=-1), atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_a_model_that_ends_otherwise_is_computed_whole(folders: dict[str, Path], tokens: Tensor) -> None:
    """Such as one whose logits are scaled by what no configuration says."""
    odd: Any = load_language_model(str(folders["plain"]))
    original = odd.forward
    odd.forward = lambda *arguments, **options: 3 * original(*arguments, **options)
    lazy = lazy_logits(odd, tokens, prepend_bos=False)
    assert lazy.states.shape == (3, 9, 4096)
    assert_close(lazy[:, :-1].nll(tokens[:, 1:]), nll_of(odd(tokens, prepend_bos=False), tokens), **CLOSE)


@torch.no_grad()
def test_remembered_and_shifted(tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED_BYTES", 4 * 4 * 4096)
    states, W_U = torch.randn(3, 8), torch.randn(8, 4096)
    lazy = LazyLogits(states, lambda rows: rows @ W_U, 4096)
    assert lazy.remembered().states.shape == (3, 4096)
    assert LazyLogits(torch.randn(5, 8), lazy.head, 4096).remembered().states.shape == (5, 8)
    sizes: list[int] = []

    def counting(rows: Tensor) -> Tensor:
        sizes.append(len(rows))
        return rows @ W_U

    monkeypatch.setattr(module, "CHUNK_BYTES", 2 * 4 * 4096)
    log_probs = LazyLogits(states, counting, 4096).as_log_probs().remembered()
    assert sizes == [2, 1]  # a chunk at a time
    assert_close(log_probs.whole(), (states @ W_U).log_softmax(dim=-1))
    assert LazyLogits(states[:0], counting, 4096).remembered().whole().shape == (0, 4096)
    bias = torch.randn(4096)
    assert_close(lazy.plus(bias).whole(), states @ W_U + bias)
    assert_close(lazily(lambda _: states @ W_U, tokens).whole(), states @ W_U)
    assert lazily(LazyModel(lambda _: lazy), tokens) is lazy


@torch.no_grad()
def test_generation_unembeds_the_last_position_alone(model: Any, tokens: Tensor) -> None:
    with last_position_alone(model):
        last = model(tokens, prepend_bos=False)
    assert_close(last, model(tokens, prepend_bos=False)[:, -1:], **CLOSE)
