"""Test that the language model inside a multimodal folder is loaded with hooks and gives the logits of the whole model for text."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from mtsae_lens.data.language_models import load_language_model, resolve_hook
from mtsae_lens.errors import ModelError

TEXT: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def gemma3() -> PreTrainedModel:
    config = transformers.Gemma3Config(
        text_config=TEXT | {"head_dim": 8},
        vision_config=VISION,
        mm_tokens_per_image=4,
        image_token_index=5,
        boi_token_index=6,
        eoi_token_index=7,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def llava() -> PreTrainedModel:
    config = transformers.LlavaConfig(
        text_config=TEXT | {"model_type": "llama"},
        vision_config=VISION | {"model_type": "clip_vision_model"},
        image_token_index=5,
    )
    return transformers.LlavaForConditionalGeneration(config)


def mistral3() -> PreTrainedModel:
    config = transformers.Mistral3Config(
        text_config=TEXT | {"model_type": "mistral", "head_dim": 8},
        vision_config=VISION | {"model_type": "pixtral"},
        image_token_index=5,
    )
    return transformers.Mistral3ForConditionalGeneration(config)


def qwen2_vl() -> PreTrainedModel:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    vision = {"embed_dim": 16, "hidden_size": 32, "depth": 1, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
    config = transformers.Qwen2VLConfig(
        text_config=TEXT | {"rope_parameters": rope}, vision_config=vision, image_token_id=5, video_token_id=6
    )
    return transformers.Qwen2VLForConditionalGeneration(config)


def save(make: Callable[[], Any], folder: Path, tokenizer_from: Path) -> Any:
    torch.manual_seed(0)
    model = make().eval()
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_from / name, folder)
    return model


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("make", "prefix"), [(gemma3, "bridge:"), (llava, "bridge:"), (llava, ""), (mistral3, "bridge:"), (mistral3, "")]
)
def test_the_language_model_inside(
    make: Callable[[], Any], prefix: str, dtype: str, tmp_path: Path, tiny_model_dir: Path
) -> None:
    whole = save(make, tmp_path, tiny_model_dir)
    model: Any = load_language_model(f"{prefix}{tmp_path}", dtype=dtype)
    assert model.cfg.n_ctx == 64
    assert model.cfg.d_vocab == 4096
    assert resolve_hook(model, "blocks.1.hook_resid_post") == 32
    assert not any("vision" in name for name, _ in model.named_parameters())
    if dtype == "float32":
        tokens = torch.randint(8, 4096, (2, 20), generator=torch.Generator().manual_seed(1))
        expected = whole(tokens).logits
        assert expected.std() > 0.1
        torch.testing.assert_close(model(tokens, prepend_bos=False), expected, atol=2e-4, rtol=1e-4)


def test_without_a_bridge_the_family_inside_is_named(tmp_path: Path, tiny_model_dir: Path) -> None:
    save(gemma3, tmp_path, tiny_model_dir)
    with pytest.raises(ModelError, match=r"Gemma3ForCausalLM .*try it as a bridge: bridge:"):
        load_language_model(str(tmp_path))


def test_a_language_model_that_is_none_of_its_own_loads_or_is_refused(tmp_path: Path, tiny_model_dir: Path) -> None:
    save(qwen2_vl, tmp_path, tiny_model_dir)
    for prefix in ("", "bridge:"):
        with pytest.raises(ModelError, match=r"Qwen2VLForConditionalGeneration|no bridge for this model") as raised:
            load_language_model(f"{prefix}{tmp_path}")
        assert "\n" not in str(raised.value)
