"""Test the check of conversions: a model with huge activations loads in half precision; a broken conversion is refused in every precision."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from mtsae_lens.data import language_models
from mtsae_lens.data.conversion import Reference, probe_tokens, weights_in_float32
from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.errors import ModelError

SIZES: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
FAMILIES: dict[str, Callable[[], Any]] = {
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=16)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
}


@torch.no_grad()
def save(family: str, folder: Path, tokenizer_from: Path, *, outliers: float = 1.0) -> Path:
    """A random model; with `outliers`, two dimensions of its residual stream are that many times as large as the others."""
    torch.manual_seed(0)
    model = FAMILIES[family]()
    model.get_input_embeddings().weight[:, [3, 7]] *= outliers
    for name, weight in model.named_parameters():
        if name.endswith(("self_attn.o_proj.weight", "mlp.down_proj.weight")):
            weight[[3, 7]] *= outliers
        if family == "gemma3" and name.endswith(("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")):
            weight[[3, 7]] = outliers - 1  # the gain is one more
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_from / name, folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("outliers", [1.0, 100.0])
@pytest.mark.parametrize(("family", "prefix"), [("gemma3", "bridge:"), ("llama", "bridge:"), ("llama", ""), ("qwen2", "")])
def test_models_with_outlier_dimensions_load(
    family: str, prefix: str, outliers: float, dtype: str, tmp_path: Path, tiny_model_dir: Path
) -> None:
    folder = save(family, tmp_path / family, tiny_model_dir, outliers=outliers)
    model: Any = load_language_model(f"{prefix}{folder}", dtype=dtype)
    assert model.cfg.dtype == getattr(torch, dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


def change_config(**changes: Any) -> Callable[[Any], None]:
    def change(cfg: Any) -> None:
        for name, value in changes.items():
            assert getattr(cfg, name) != value
            setattr(cfg, name, value)

    return change


BROKEN = {
    "epsilon": change_config(eps=1e-3),
    "rope base": change_config(rotary_base=500.0),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("outliers", [1.0, 100.0])
@pytest.mark.parametrize("fault", ["epsilon", "rope base", "swapped heads", "no bias", "transposed"])
def test_a_broken_twin_is_refused(
    fault: str, outliers: float, dtype: str, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save("qwen2", tmp_path / "qwen2", tiny_model_dir, outliers=outliers)
    config, state = language_models._hooked_config, language_models.get_pretrained_state_dict

    def broken_config(*args: Any) -> Any:
        cfg = config(*args)
        if fault in BROKEN:
            BROKEN[fault](cfg)
        return cfg

    def broken_state(*args: Any, **kwargs: Any) -> Any:
        weights = state(*args, **kwargs)
        if fault == "swapped heads":
            weights["blocks.1.attn.W_Q"] = weights["blocks.1.attn.W_Q"].flip(0)
        if fault == "no bias":
            weights["blocks.1.attn.b_Q"] = weights["blocks.1.attn.b_Q"] + 0.5
        if fault == "transposed":
            weights["blocks.2.attn.W_O"] = weights["blocks.2.attn.W_O"].roll(1, dims=1)
        return weights

    monkeypatch.setattr(language_models, "_hooked_config", broken_config)
    monkeypatch.setattr(language_models, "get_pretrained_state_dict", broken_state)
    with pytest.raises(ModelError, match="expected the same logits with hooks as without"):
        load_language_model(str(folder), dtype=dtype)


def test_an_overflow_in_float16_is_called_that(tmp_path: Path, tiny_model_dir: Path) -> None:
    folder = save("llama", tmp_path / "llama", tiny_model_dir, outliers=3e6)
    for name in (f"bridge:{folder}", str(folder)):
        with pytest.raises(
            ModelError, match=r"expected finite logits, got NaN or infinity in float16 .the model itself.*give dtype bfloat16"
        ):
            load_language_model(name, dtype="float16")
        load_language_model(name, dtype="bfloat16")


def test_a_hooked_model_that_overflows_is_told(tiny_llama_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float16).eval()
    reference = Reference.take("copy", model, 4096, 64)
    with pytest.raises(ModelError, match=r"expected finite logits, got NaN or infinity in float16 .the model with hooks"):
        reference.check_half(lambda tokens: model(tokens).logits * torch.inf)
    with pytest.raises(ModelError, match=r"differ by .*% of their spread, of which rounding to float16 explains"):
        reference.check_half(lambda tokens: model(tokens.flip(1)).logits)
    reference.check_half(model)


@torch.no_grad()
def test_weights_come_back_from_float32_bit_for_bit(tiny_llama_dir: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.bfloat16).eval()
    before = {name: tensor.clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    tokens = probe_tokens(4096, 64, "cpu")
    logits = model(tokens).logits
    with weights_in_float32(model):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert model(tokens).logits.dtype == torch.float32
    after = dict((*model.named_parameters(), *model.named_buffers()))
    assert all(torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, tensor in before.items())
    assert torch.equal(model(tokens).logits, logits)


def test_a_model_that_reads_ahead_is_refused(tmp_path: Path, tiny_model_dir: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    BertLMHeadModel(BertConfig(vocab_size=4096, initializer_range=0.2, **sizes)).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model_dir / name, tmp_path)
    for prefix in ("", "bridge:"):
        with pytest.raises(ModelError, match=r"depend on later tokens|does not know the family"):
            load_language_model(f"{prefix}{tmp_path}")
    with pytest.raises(ModelError, match="depend on later tokens"):
        load_language_model(f"bridge:{tmp_path}")
