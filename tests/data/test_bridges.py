"""Test bridges: Hugging Face's logits, the hook names of `HookedTransformer`, and the same edits as in a `HookedTransformer`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from mtsae_lens.data.activations import ActivationReader
from mtsae_lens.data.bridges import HookedBridge, is_causal
from mtsae_lens.data.conversion import weights_in_float32
from mtsae_lens.data.language_models import load_language_model, resolve_hook
from mtsae_lens.data.precision import rounding_disagreement
from mtsae_lens.data.token_tables import read_tokens
from mtsae_lens.errors import ModelError
from mtsae_lens.evaluation.fidelity import evaluate_fidelity
from mtsae_lens.opening import open_sae
from mtsae_lens.splice.edits import FeatureClamp, FeatureEdit
from mtsae_lens.splice.gates import RunningEvidenceGate
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.training.recipe import TrainSettings, train_sae

HOOK = "blocks.0.hook_resid_post"
CLOSE = {"atol": 2e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def bridge(tiny_model_dir: Path) -> Any:
    return load_language_model(f"bridge:{tiny_model_dir}")


@pytest.fixture(scope="module")
def bridged(tiny_sae_dir: Path, tiny_model_dir: Path) -> HookedLM:
    """The SAE of `lm`, trained in a `HookedTransformer`, in the bridge of the same model."""
    return open_sae(tiny_sae_dir, model=f"bridge:{tiny_model_dir}", device="cpu", batch_size=4)[0]


@pytest.fixture(scope="module")
def tokens(bridged: HookedLM, text_file: Path) -> Any:
    return read_tokens(str(text_file), "test", bridged.cutter, 4).tokens


@torch.no_grad()
def test_logits_are_hugging_faces(bridge: Any, tiny_model_dir: Path, tokens: torch.Tensor) -> None:
    expected = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32).eval()(tokens).logits
    assert isinstance(bridge, HookedBridge)
    assert_close(bridge(tokens, prepend_bos=False), expected, **CLOSE)
    assert bridge.cfg.model_name == "bert-t5-gemma"
    assert not bridge.training
    assert not any(parameter.requires_grad for parameter in bridge.parameters())


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype: str, tiny_sae_dir: Path, tiny_model_dir: Path, tokens: torch.Tensor) -> None:
    number_type = getattr(torch, dtype)
    bridged, _ = open_sae(tiny_sae_dir, model=f"bridge:{tiny_model_dir}", batch_size=4, dtype=dtype)
    assert bridged.model.cfg.dtype == number_type
    assert {parameter.dtype for parameter in bridged.model.parameters()} == {number_type}
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=number_type, attn_implementation="eager").eval()
    clean = bridged.model(tokens, prepend_bos=False)
    theirs = model(tokens).logits
    with weights_in_float32(model):
        exact = model(tokens).logits
    assert rounding_disagreement(clean, exact, [theirs]) is None
    with bridged.model.hooks(fwd_hooks=[bridged.splice.hook(FeatureEdit((0, 1, 2), multiplier=-1.0), bridged.masked(tokens))]):
        assert torch.equal(bridged.model(tokens, prepend_bos=False), clean)
    features = tuple(bridged.feature_acts(tokens).flatten(0, 1).sum(0).topk(5).indices.tolist())
    with bridged.model.hooks(fwd_hooks=[bridged.splice.hook(FeatureEdit(features, 2.0), bridged.masked(tokens))]):
        assert not torch.equal(bridged.model(tokens, prepend_bos=False), clean)


def test_n_ctx(tiny_model_dir: Path) -> None:
    assert load_language_model(f"bridge:{tiny_model_dir}").cfg.n_ctx == 64
    assert load_language_model(f"bridge:{tiny_model_dir}", n_ctx=16).cfg.n_ctx == 16


@pytest.mark.parametrize(
    "hook_name",
    [
        HOOK,
        "blocks.1.hook_resid_pre",
        "blocks.1.hook_resid_post",
        "blocks.0.mlp.hook_post",
        "blocks.1.hook_mlp_out",
        "blocks.0.attn.hook_z",
    ],
)
def test_activations_are_hooked_transformers(bridge: Any, tiny_model: Any, tokens: torch.Tensor, hook_name: str) -> None:
    expected = ActivationReader(tiny_model, hook_name).read(tokens)
    assert resolve_hook(bridge, hook_name) == resolve_hook(tiny_model, hook_name) == expected.shape[-1]
    assert_close(ActivationReader(bridge, hook_name).read(tokens), expected, **CLOSE)


def test_saelens_own_bridge_calls_no_hook_under_an_alias(bridge: Any, tokens: torch.Tensor, tiny_model_dir: Path) -> None:
    """This is why `HookedBridge` exists: with SAELens's own bridge, an edit changes nothing."""
    zero = [(HOOK, lambda h, hook: torch.zeros_like(h))]
    clean = bridge(tokens, prepend_bos=False)
    assert not torch.allclose(bridge.run_with_hooks(tokens, fwd_hooks=zero, prepend_bos=False), clean, atol=1e-2)
    unrepaired: Any = load_language_model(f"bridge:{tiny_model_dir}")
    unrepaired.__class__ = SAETransformerBridge
    assert_close(unrepaired.run_with_hooks(tokens, fwd_hooks=zero, prepend_bos=False), clean)


def test_unknown_hooks_are_refused_with_hooked_transformers_names(bridge: Any) -> None:
    with pytest.raises(ModelError, match=r"'blocks\.0\.hook_resid_post'"):
        resolve_hook(bridge, "blocks.0.resid_post")


@torch.no_grad()
def test_edits_agree(lm: HookedLM, bridged: HookedLM, tokens: torch.Tensor) -> None:
    acts = lm.feature_acts(tokens)
    assert_close(bridged.feature_acts(tokens), acts, **CLOSE)
    features = tuple(acts.flatten(0, 1).sum(0).topk(5).indices.tolist())
    gate = RunningEvidenceGate(torch.tensor(features), torch.ones(5), decay=0.5, threshold=0.5)
    edits = [FeatureEdit(features, 2.0), FeatureEdit(features, 1.0, gate), FeatureClamp(features, (3.0,) * 5)]
    clean = lm.model(tokens, prepend_bos=False)
    for edit in edits:
        expected, got = (
            hooked.logits_from(tokens, hooked.splice.edited(hooked.activations(tokens), edit, hooked.masked(tokens)))
            for hooked in (lm, bridged)
        )
        assert not torch.allclose(expected, clean, atol=1e-2)
        assert_close(got, expected, **CLOSE)
        with bridged.model.hooks(fwd_hooks=[bridged.splice.hook(edit, bridged.masked(tokens))]):
            assert_close(bridged.model(tokens, prepend_bos=False), expected, **CLOSE)


@torch.no_grad()
def test_an_edit_of_nothing_changes_nothing(bridged: HookedLM, tokens: torch.Tensor) -> None:
    h = bridged.splice.edited(bridged.activations(tokens), FeatureEdit((0, 1, 2), multiplier=-1.0))
    assert_close(bridged.logits_from(tokens, h), bridged.model(tokens, prepend_bos=False), **CLOSE)


@torch.no_grad()
def test_log_probs_at_counted_positions_agree(lm: HookedLM, bridged: HookedLM, tokens: torch.Tensor) -> None:
    counted = torch.rand(tokens[:, 1:].shape, generator=torch.Generator().manual_seed(0)) < 0.3
    expected = lm.lazy_logits_from(tokens, 0.5 * lm.activations(tokens))[:, :-1][counted].whole()
    got = bridged.lazy_logits_from(tokens, 0.5 * bridged.activations(tokens))[:, :-1][counted].whole()
    assert_close(got, expected, **CLOSE)


@pytest.mark.parametrize("use_past_kv_cache", [True, False])
def test_generation_agrees(lm: HookedLM, bridged: HookedLM, tokens: torch.Tensor, use_past_kv_cache: bool) -> None:
    prompt = tokens[:2, :8]
    features = tuple(lm.feature_acts(tokens).flatten(0, 1).sum(0).topk(8).indices.tolist())
    options = {"max_new_tokens": 12, "do_sample": False, "stop_at_eos": False, "use_past_kv_cache": use_past_kv_cache}
    for edit in (None, FeatureEdit(features, 6.0)):
        assert torch.equal(bridged.generate(prompt, edit, **options), lm.generate(prompt, edit, **options))
    assert not torch.equal(bridged.generate(prompt, edit, **options), bridged.generate(prompt, **options))


@torch.no_grad()
def test_saelens_splices_into_it_and_fidelity_agrees(
    lm: HookedLM, bridged: HookedLM, tokens: torch.Tensor, text_file: Path
) -> None:
    clean = bridged.model(tokens, prepend_bos=False)
    spliced = bridged.model.run_with_saes(tokens, saes=[bridged.sae], use_error_term=True)
    assert_close(spliced, clean, **CLOSE)
    without_error = [hooked.model.run_with_saes(tokens, saes=[hooked.sae]) for hooked in (lm, bridged)]
    assert not torch.allclose(without_error[0], clean, atol=1e-2)
    assert_close(without_error[1], without_error[0], **CLOSE)
    assert HOOK in bridged.model.hook_dict  # the SAE is gone again
    table = read_tokens(str(text_file), "test", lm.cutter, 4)
    expected, got = (evaluate_fidelity(x.sae, x.model, x.cutter, table, batch_size=4) for x in (lm, bridged))
    assert got == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_training_on_heads(
    tiny_settings: Callable[..., TrainSettings], tmp_path: Path, tiny_model_dir: Path, tokens: torch.Tensor
) -> None:
    """An SAE on `hook_z`, trained in a bridge, reads and edits the same in both."""
    train_sae(tiny_settings(tmp_path, hook_name="blocks.0.attn.hook_z", model=f"bridge:{tiny_model_dir}"))
    assert SAE.load_from_disk(tmp_path).cfg.metadata.model_name == f"bridge:{tiny_model_dir}"
    bridged, _ = open_sae(tmp_path, model=None, device="cpu", batch_size=4)
    hooked, _ = open_sae(tmp_path, model=str(tiny_model_dir), device="cpu", batch_size=4)
    assert isinstance(bridged.model, HookedBridge)
    acts = hooked.feature_acts(tokens)
    assert_close(bridged.feature_acts(tokens), acts, **CLOSE)
    edit = FeatureEdit(tuple(acts.flatten(0, 1).sum(0).topk(5).indices.tolist()), 3.0)
    logits = [x.logits_from(tokens, x.splice.edited(x.activations(tokens), edit)) for x in (hooked, bridged)]
    assert_close(logits[1], logits[0], **CLOSE)


def test_a_family_that_hooked_transformer_does_not_know(tmp_path: Path, tiny_model_dir: Path) -> None:
    from transformers import GraniteConfig, GraniteForCausalLM

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    GraniteForCausalLM(GraniteConfig(vocab_size=4096, **sizes)).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model_dir / name, tmp_path)
    with pytest.raises(ModelError, match="does not know the family GraniteForCausalLM"):
        load_language_model(str(tmp_path))
    model: Any = load_language_model(f"bridge:{tmp_path}")
    assert resolve_hook(model, HOOK) == 32


def test_what_has_no_bridge_is_refused(tmp_path: Path, save_neox: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match="has no bridge for this model"):
        load_language_model(f"bridge:{save_neox(tmp_path / 'm', attention_bias=False)}")


def test_what_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"expected config\.json, got none"):
        load_language_model(f"bridge:{tmp_path}")
    with pytest.raises(ModelError, match=r"Did you mean .*'pythia-70m'"):
        load_language_model("bridge:pythia-70")


def test_a_model_says_whether_it_is_causal(bridge: Any, tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_causal(bridge)
    assert is_causal(tiny_model)
    monkeypatch.setattr(tiny_model.cfg, "attention_dir", "bidirectional")
    assert not is_causal(tiny_model)
