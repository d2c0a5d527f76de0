"""Test that clones share no weight with the original, and that weights survive a file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.errors import DataError, ModelError
from mtsae_lens.unlearning.finetuning.clones import clone_model, load_weights, save_weights

TOKENS = torch.arange(1, 41).view(2, 20)


def check_a_clone_is_free(clone: Callable[[Any], Any], model: Any) -> None:
    """Changing any weight of a clone changes the clone's logits, and not those of the original."""
    before = model(TOKENS, prepend_bos=False)
    assert torch.equal(clone(model)(TOKENS, prepend_bos=False), before)
    for name in ("embed.W_E", "blocks.0.mlp.W_in", "blocks.1.attn.W_Q", "blocks.1.mlp.b_out", "ln_final.w", "unembed.W_U"):
        twin = clone(model)
        dict(twin.named_parameters())[name].data += 0.1 * torch.randn_like(dict(twin.named_parameters())[name])
        assert not torch.equal(twin(TOKENS, prepend_bos=False), before), name
        assert torch.equal(model(TOKENS, prepend_bos=False), before), name


def test_a_clone_is_free(tiny_model: Any) -> None:
    check_a_clone_is_free(clone_model, tiny_model)


def test_a_deep_copy_is_not(tiny_model: Any) -> None:
    """Why `clone_model` is there; once this fails, `copy.deepcopy` will do."""
    with pytest.raises(AssertionError, match="mlp"):
        check_a_clone_is_free(copy.deepcopy, tiny_model)


def test_a_clone_is_the_same_model(tiny_model: Any) -> None:
    state = torch.get_rng_state()
    twin = clone_model(tiny_model)
    assert torch.equal(torch.get_rng_state(), state)
    assert twin.tokenizer is tiny_model.tokenizer
    assert type(twin) is type(tiny_model)
    assert twin.cfg == tiny_model.cfg
    assert twin.cfg is not tiny_model.cfg
    assert not twin.training
    assert not any(parameter.requires_grad for parameter in twin.parameters())


def test_a_model_with_saes_on_it_is_refused(tiny_model: Any, lm: Any) -> None:
    model = clone_model(tiny_model)
    model.add_sae(lm.sae)
    with pytest.raises(ModelError, match="reset_saes"):
        clone_model(model)


def test_weights_come_back_from_a_file(tiny_model: Any, tmp_path: Path) -> None:
    changed = clone_model(tiny_model)
    for parameter in changed.parameters():
        parameter.data += torch.randn_like(parameter)
    save_weights(tmp_path / "w.safetensors", changed)
    loaded = load_weights(tmp_path / "w.safetensors", tiny_model)
    assert torch.equal(loaded(TOKENS, prepend_bos=False), changed(TOKENS, prepend_bos=False))
    assert not torch.equal(loaded.embed.W_E, tiny_model.embed.W_E)
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_files_that_are_not_weights_of_this_model_are_refused(
    tiny_model: Any, tmp_path: Path, save_neox: Callable[..., Path]
) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(DataError):
        load_weights(path, tiny_model)
    path.write_bytes(b"no weights")
    with pytest.raises(DataError, match="expected a safetensors file"):
        load_weights(path, tiny_model)
    wider = load_language_model(str(save_neox(tmp_path / "wider", intermediate_size=96)))
    save_weights(path, wider)
    with pytest.raises(ModelError, match=r"blocks.0.mlp.W_in of shape \(32, 64\), got \(32, 96\)"):
        load_weights(path, tiny_model)


def test_a_bridge_is_refused(tiny_model_dir: Path) -> None:
    with pytest.raises(ModelError, match=r"got a HookedBridge; load it without 'bridge:'"):
        clone_model(load_language_model(f"bridge:{tiny_model_dir}"))
