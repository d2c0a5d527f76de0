"""Test what features write against the definition."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.exploration.decoder import find_extreme_tokens, find_neighbors, get_residual_directions, measure_last_gain


@pytest.mark.parametrize("hook_name", ["blocks.0.hook_resid_post", "blocks.1.hook_mlp_out", "blocks.0.attn.hook_z"])
def test_promoted_and_suppressed_tokens(random_lm: Any, hook_name: str) -> None:
    lm = random_lm(hook_name=hook_name)
    written = lm.sae.W_dec.detach()
    if hook_name.endswith("hook_z"):  # heads one after another, as the SAE sees them
        written = torch.einsum("fhd,hdm->fm", written.view(24, 2, 16), lm.model.blocks[0].attn.W_O)
    logits = (written * lm.model.ln_final.w) @ lm.model.W_U
    logits = logits - logits.mean(dim=1, keepdim=True)
    found = find_extreme_tokens(lm, 5)
    for name, extreme in (("promoted", logits.topk(5, dim=1)), ("suppressed", logits.topk(5, dim=1, largest=False))):
        assert_close(found[f"{name}_logits"], extreme.values)
        assert torch.equal(found[name], extreme.indices)


def test_the_gain_of_the_last_norm_is_what_it_does(tiny_model: Any, tmp_path: Path, tiny_model_dir: Path) -> None:
    """Gemma multiplies by one more than the weight that it stores."""
    with torch.no_grad():
        changed = copy.deepcopy(tiny_model)
        changed.ln_final.w.copy_(torch.linspace(-2, 3, 32))
        changed.ln_final.b.copy_(torch.linspace(1, 2, 32))
        assert_close(measure_last_gain(changed), changed.ln_final.w.detach())
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16}
        gemma = Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=4096, num_key_value_heads=1, **sizes))
        gemma.model.norm.weight.copy_(torch.linspace(-0.5, 0.5, 32))
        gemma.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model_dir / name, tmp_path)
    assert_close(measure_last_gain(load_language_model(f"bridge:{tmp_path}")), torch.linspace(0.5, 1.5, 32))


def test_a_hook_that_is_not_written_to_the_residual_stream(random_lm: Any) -> None:
    lm = random_lm(hook_name="ln_final.hook_normalized")
    assert get_residual_directions(lm) is None
    assert find_extreme_tokens(lm, 5) == {}


def test_neighbours(random_lm: Any) -> None:
    sae = random_lm().sae
    cosines, features = find_neighbors(sae, 3)
    for feature in range(24):
        others = [other for other in range(24) if other != feature]
        expected = torch.cosine_similarity(sae.W_dec[feature], sae.W_dec[others], dim=1)
        assert_close(cosines[feature], expected.topk(3).values.detach())
        assert features[feature].tolist() == [others[place] for place in expected.topk(3).indices]
