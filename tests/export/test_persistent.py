"""Test weights that imitate an edit: exact if possible, and saved as an ordinary model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.errors import ModelError
from mtsae_lens.export.base_models import open_base
from mtsae_lens.export.persistent import project_weights
from mtsae_lens.splice.direction_edits import DirectionEdit, orthonormal_rows
from mtsae_lens.splice.edits import FeatureClamp, FeatureEdit
from mtsae_lens.splice.gates import FeatureActiveGate
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.splicing import Splice

ATOL = 1e-4
BASIS = orthonormal_rows(torch.randn(3, 32, generator=torch.Generator().manual_seed(2)))
EDITS = {
    "through_zero": DirectionEdit(BASIS, torch.zeros(32)),
    "centred": DirectionEdit(BASIS, torch.linspace(-1, 1, 32)),
    "pushed": DirectionEdit(BASIS, torch.linspace(-1, 1, 32), 0.7),
}


def projected(name: str, edit: DirectionEdit, hook_name: str, folder: Path) -> Any:
    """The hooked model of the weights that were written."""
    base = open_base(name)
    project_weights(base, edit, hook_name)
    base.save(folder)
    return load_language_model(str(folder))


@torch.no_grad()
def stream(model: Any, tokens: torch.Tensor, hook_name: str) -> torch.Tensor:
    return model.run_with_cache(tokens, names_filter=[hook_name], prepend_bos=False)[1][hook_name]


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("family", ["neox", "llama", "gpt2"])
def test_before_the_first_layer_weights_are_the_hook(
    family: str, name: str, models: Any, model_dirs: dict[str, str], tokens: torch.Tensor, make_lm: Any, tmp_path: Path
) -> None:
    hook_name, edit = "blocks.0.hook_resid_pre", EDITS[name]
    splice: Splice = make_lm(family, hook_name, "standard").splice
    with torch.no_grad():
        expected = models[family].run_with_hooks(tokens, fwd_hooks=[splice.hook(edit)], prepend_bos=False).log_softmax(-1)
        got = projected(model_dirs[family], edit, hook_name, tmp_path)(tokens, prepend_bos=False).log_softmax(-1)
        clean = models[family](tokens, prepend_bos=False).log_softmax(-1)
    torch.testing.assert_close(got, expected, atol=ATOL, rtol=0)
    assert (clean - expected).abs().max() > 0.1


@pytest.mark.parametrize("hook_name", ["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"])
@pytest.mark.parametrize("family", ["neox", "llama", "gpt2"])
def test_at_a_later_hook_the_stream_lacks_the_directions_and_later_layers_keep_their_weights(
    family: str, hook_name: str, models: Any, model_dirs: dict[str, str], tokens: torch.Tensor, tmp_path: Path
) -> None:
    edit = EDITS["centred"]
    model = projected(model_dirs[family], edit, hook_name, tmp_path)
    along = (stream(model, tokens, hook_name) - edit.center) @ edit.basis.T
    torch.testing.assert_close(along, torch.zeros_like(along), atol=ATOL, rtol=0)
    clean = models[family]
    before = (stream(clean, tokens, hook_name) - edit.center) @ edit.basis.T
    assert before.abs().max() > 0.1
    first_kept = 1 if hook_name.startswith("blocks.0") or hook_name.endswith("pre") else 2
    for layer in range(first_kept, 2):
        assert torch.equal(model.blocks[layer].mlp.W_out, clean.blocks[layer].mlp.W_out)
    assert torch.equal(model.W_U, clean.W_U)  # gpt2 ties it to the embedding
    assert not torch.equal(model.W_E, clean.W_E)


def test_after_a_layer_that_reads_the_stream_weights_are_not_the_hook(
    models: Any, model_dirs: dict[str, str], tokens: torch.Tensor, tmp_path: Path
) -> None:
    edit, hook_name = EDITS["through_zero"], "blocks.0.hook_resid_post"
    h = stream(models["neox"], tokens, hook_name)
    at_hook = h - h @ edit.basis.T @ edit.basis
    in_weights = stream(projected(model_dirs["neox"], edit, hook_name, tmp_path), tokens, hook_name)
    assert (in_weights - at_hook).abs().max() > 0.01


def test_a_folder_gives_the_logits_of_the_model_that_was_changed(
    model_dirs: dict[str, str], tokens: torch.Tensor, tmp_path: Path
) -> None:
    base = open_base(model_dirs["gpt2"])
    project_weights(base, EDITS["pushed"], "blocks.0.hook_resid_post")
    base.save(tmp_path)
    with torch.no_grad():
        expected = base.model(tokens).logits.log_softmax(-1)
        again = AutoModelForCausalLM.from_pretrained(tmp_path)(tokens).logits.log_softmax(-1)
        hooked = load_language_model(str(tmp_path))(tokens, prepend_bos=False).log_softmax(-1)
    assert torch.equal(again, expected)
    torch.testing.assert_close(hooked, expected, atol=ATOL, rtol=0)


def test_of_features_their_decoder_rows_are_projected_out(make_lm: Callable[..., HookedLM]) -> None:
    splice = make_lm().splice
    for edit in (FeatureEdit((3, 5), 2.0, FeatureActiveGate(torch.tensor([1]))), FeatureClamp((3, 5), (1.0, 1.0))):
        projection = edit.as_projection(splice.sae)
        assert (len(projection.basis), projection.multiplier, projection.gate.causal) == (2, 0.0, True)
        rows = splice.sae.W_dec[[3, 5]].detach()
        torch.testing.assert_close(rows @ projection.basis.T @ projection.basis, rows)
    gated = DirectionEdit(BASIS, torch.ones(32), 0.5, FeatureActiveGate(torch.tensor([1])))
    projection = gated.as_projection(splice.sae)
    assert not isinstance(projection.gate, FeatureActiveGate)
    assert (projection.multiplier, projection.basis is BASIS) == (0.5, True)
    with pytest.raises(ModelError, match="to project out, got a"):
        FeatureEdit(()).as_projection(splice.sae)


def test_another_hook_or_family_is_refused(model_dirs: dict[str, str], tmp_path: Path) -> None:
    base = open_base(model_dirs["neox"])
    with pytest.raises(ModelError, match="expected an edit at blocks"):
        project_weights(base, EDITS["centred"], "blocks.0.hook_mlp_out")
    from transformers import OPTConfig, OPTForCausalLM

    sizes = {"vocab_size": 32, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "ffn_dim": 8}
    OPTForCausalLM(OPTConfig(**sizes, word_embed_proj_dim=8)).save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"of type gpt_neox, llama.* got 'opt'"):
        open_base(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match="expected a Hugging Face model with safetensors"):
        open_base(str(tmp_path))
