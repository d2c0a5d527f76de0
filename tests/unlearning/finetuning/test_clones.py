"""Test that clones share no weight with the original, whether it is a HookedTransformer or a bridge."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.errors import ModelError
from mtsae_lens.unlearning.finetuning.clones import clone_model, clone_to_train

TOKENS = torch.arange(1, 41).view(2, 20)
HOOK = "blocks.0.hook_resid_post"
WITHOUT_EFFECT = ("b_K", "k._original_component.bias", "attention.qkv", "key.bias")
"""A constant in all keys, which softmax does not see, and the fused matrix that a bridge has split."""


@pytest.fixture(params=["hooked", "bridge", "llama_bridge"])
def model(request: pytest.FixtureRequest, tiny_model: Any, tiny_model_dir: Path, tiny_llama_dir: Path) -> Any:
    if request.param == "hooked":
        return tiny_model
    return load_language_model(f"bridge:{tiny_model_dir if request.param == 'bridge' else tiny_llama_dir}")


def check_a_clone_is_free(clone: Callable[[Any], Any], model: Any) -> None:
    """Changing any weight of a clone changes the clone's logits, and not those of the original."""
    before = model(TOKENS, prepend_bos=False)
    copy = clone(model)
    assert torch.equal(copy(TOKENS, prepend_bos=False), before)
    for name, parameter in copy.named_parameters():
        if any(part in name for part in WITHOUT_EFFECT):
            continue
        value = parameter.detach().clone()
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        assert not torch.equal(copy(TOKENS, prepend_bos=False), before), name
        assert torch.equal(model(TOKENS, prepend_bos=False), before), name
        parameter.data.copy_(value)


def test_a_clone_is_free(model: Any) -> None:
    check_a_clone_is_free(clone_model, model)


def test_a_deep_copy_is_not(tiny_model: Any) -> None:
    """Why a HookedTransformer is built anew; once this fails, `copy.deepcopy` will do."""
    with pytest.raises(AssertionError, match="mlp"):
        check_a_clone_is_free(copy.deepcopy, tiny_model)


def test_a_clone_is_the_same_model(model: Any) -> None:
    state = torch.get_rng_state()
    copy = clone_model(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert copy.tokenizer is model.tokenizer
    assert type(copy) is type(model)
    assert copy.cfg == model.cfg
    assert copy.cfg is not model.cfg
    assert not copy.training
    assert not any(parameter.requires_grad for parameter in copy.parameters())


def test_a_clone_has_no_hook_of_the_original(model: Any) -> None:
    before = model(TOKENS, prepend_bos=False)
    n_calls = 0

    def erase(h: torch.Tensor, hook: Any) -> torch.Tensor:
        nonlocal n_calls
        n_calls += 1
        return torch.zeros_like(h)

    with model.hooks(fwd_hooks=[(HOOK, erase)]):
        copy = clone_model(model)
    assert torch.equal(copy(TOKENS, prepend_bos=False), before)
    assert not n_calls
    with copy.hooks(fwd_hooks=[(HOOK, erase)]):  # its own hooks are called, by the same name
        assert not torch.equal(copy(TOKENS, prepend_bos=False), before)
        assert n_calls == 1
        assert torch.equal(model(TOKENS, prepend_bos=False), before)


def test_a_model_in_half_precision_is_trained_in_float32(model: Any) -> None:
    half = clone_model(model, torch.bfloat16)
    assert half.cfg.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    copy = clone_to_train(half)
    assert copy.cfg.dtype == torch.float32
    for weight, expected in zip(copy.parameters(), half.parameters(), strict=True):
        assert torch.equal(weight, expected.float())
    assert copy(TOKENS, prepend_bos=False).dtype == torch.float32


def test_a_model_with_saes_on_it_is_refused(model: Any, lm: Any) -> None:
    copy = clone_model(model)
    copy.add_sae(lm.sae)
    with pytest.raises(ModelError, match="reset_saes"):
        clone_model(copy)
