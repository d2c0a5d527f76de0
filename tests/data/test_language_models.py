"""Test loading: a hooked model gives Hugging Face's logits or is refused; hooks are checked by name and width."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mtsae_lens.data import bridges, language_models
from mtsae_lens.data.conversion import weights_in_float32
from mtsae_lens.data.language_models import load_language_model, resolve_hook
from mtsae_lens.data.precision import rounding_disagreement
from mtsae_lens.errors import ModelError


def rope(theta: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": 0.25}}


@torch.no_grad()
def assert_same_logits(folder: Path) -> None:
    tokens = torch.randint(0, 4096, (3, 64), generator=torch.Generator().manual_seed(1))
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(tokens).logits
    got = load_language_model(str(folder))(tokens, prepend_bos=False)
    assert expected.std() > 0.1  # else equality would mean little
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        rope(5000.0),
        {"use_parallel_residual": False},
        {"tie_word_embeddings": True},
        {"attention_bias": False},
    ],
    ids=["default", "theta", "sequential", "tied", "no-attention-bias"],
)
def test_neox_logits(tmp_path: Path, save_neox: Callable[..., Path], changes: dict[str, Any]) -> None:
    folder = save_neox(tmp_path / "bert-t5-gemma", **changes)
    if changes.get("attention_bias", True):
        assert_same_logits(folder)
    else:  # TransformerLens cannot
        with pytest.raises(ModelError):
            load_language_model(str(folder))


@pytest.mark.parametrize(
    "changes",
    [{}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}, {"num_key_value_heads": 2}],
    ids=["grouped", "theta", "ungrouped"],
)
def test_llama_logits(tmp_path: Path, save_llama: Callable[..., Path], changes: dict[str, Any]) -> None:
    assert_same_logits(save_llama(tmp_path / "tiny-llama", **changes))


def wrong_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    original = language_models.get_pretrained_state_dict

    def wrong(*args: Any, **kwargs: Any) -> dict[str, Any]:
        state = original(*args, **kwargs)
        return state | {"blocks.1.attn.W_Q": state["blocks.1.attn.W_Q"] * 1.5}

    monkeypatch.setattr(language_models, "get_pretrained_state_dict", wrong)


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["tiny_model_dir", "tiny_llama_dir"])
def test_half_precision(family: str, dtype: str, request: pytest.FixtureRequest) -> None:
    """The weights are those of the float32 model, rounded; the logits those of Hugging Face's model in that dtype, up to rounding."""
    folder, number_type = request.getfixturevalue(family), getattr(torch, dtype)
    half, full = load_language_model(str(folder), dtype=dtype), load_language_model(str(folder))
    assert full.cfg.dtype == torch.float32
    assert half.cfg.dtype == number_type
    for (name, weight), expected in zip(half.named_parameters(), full.parameters(), strict=True):
        assert torch.equal(weight, expected.to(number_type)), name
        assert weight.dtype == number_type
    tokens = torch.randint(0, 4096, (3, 64), generator=torch.Generator().manual_seed(1))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=number_type).eval()
    theirs = model(tokens).logits
    with weights_in_float32(model):
        exact = model(tokens).logits
    ours = half(tokens, prepend_bos=False)
    assert ours.dtype == number_type
    assert rounding_disagreement(ours, exact, [theirs]) is None
    assert not torch.equal(ours.float(), full(tokens, prepend_bos=False))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision_a_wrong_conversion_is_still_seen(
    dtype: str, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nan(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {k: v * float("nan") if "layers.1.mlp" in k else v for k, v in weights.items()}

    with pytest.raises(ModelError, match="nan"):
        load_language_model(changed_copy(tiny_model_dir, tmp_path / "nan", weights=nan), dtype=dtype)
    wrong_queries(monkeypatch)
    with pytest.raises(ModelError, match="got others"):
        load_language_model(str(tiny_model_dir), dtype=dtype)


@pytest.mark.parametrize("name", ["embedded", "bridge:embedded", "pythia-70m", "no-such-model"])
def test_an_unknown_dtype_is_refused_before_anything_is_read(name: str) -> None:
    with pytest.raises(ModelError, match="float32, bfloat16, float16, got 'int8'"):
        load_language_model(name, dtype="int8")


def test_names_that_transformer_lens_loads_get_the_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    class Stop(OSError):
        pass

    def load(*args: Any, **kwargs: Any) -> None:
        asked.update(kwargs)
        raise Stop

    monkeypatch.setattr(language_models.HookedSAETransformer, "from_pretrained_no_processing", load)
    monkeypatch.setattr(bridges.HookedBridge, "boot_transformers", load)
    for name in ("pythia-70m", "bridge:pythia-70m"):
        asked.clear()
        with pytest.raises(ModelError):
            load_language_model(name, dtype="bfloat16")
        assert asked["dtype"] == torch.bfloat16


def test_the_path_does_not_decide_the_family(tiny_model: Any, tiny_llama_dir: Path) -> None:
    assert tiny_model.cfg.model_name == "bert-t5-gemma"
    assert tiny_model.cfg.original_architecture == "GPTNeoXForCausalLM"
    assert load_language_model(str(tiny_llama_dir)).cfg.original_architecture == "LlamaForCausalLM"


def test_embedded_model_loads_frozen_and_in_eval_mode() -> None:
    model = load_language_model("embedded")
    assert (model.cfg.n_layers, model.cfg.d_model, model.cfg.d_vocab) == (6, 128, 4096)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_n_ctx_limits_the_context(tiny_model_dir: Path) -> None:
    assert load_language_model(str(tiny_model_dir), n_ctx=16).cfg.n_ctx == 16
    assert load_language_model(str(tiny_model_dir), n_ctx=1000).cfg.n_ctx == 64


def test_a_conversion_that_changes_the_logits_is_refused(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_queries(monkeypatch)
    with pytest.raises(ModelError, match="got others"):
        load_language_model(str(tiny_model_dir))


def changed_copy(source: Path, target: Path, config: dict[str, Any] | None = None, weights: Callable | None = None) -> str:
    shutil.copytree(source, target)
    if config:
        path = target / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    if weights:
        path = target / "model.safetensors"
        save_file(weights(load_file(path)), path, metadata={"format": "pt"})
    return str(target)


def test_broken_folders_are_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"expected config\.json, got none"):
        load_language_model(str(tmp_path))
    folder = changed_copy(tiny_model_dir, tmp_path / "a")
    (tmp_path / "a" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"expected \.safetensors files"):
        load_language_model(folder)
    folder = changed_copy(tiny_model_dir, tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").write_bytes(b"garbage" * 99)
    with pytest.raises(ModelError, match="expected a Hugging Face model"):
        load_language_model(folder)
    folder = changed_copy(tiny_model_dir, tmp_path / "c", config={"architectures": ["BertModel"]})
    with pytest.raises(ModelError, match=f"does not know the family BertModel .*; try it as a bridge: bridge:{folder}"):
        load_language_model(folder)


def test_nan_weights_are_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    def nan(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {k: v * float("nan") if "layers.1.mlp" in k else v for k, v in weights.items()}

    with pytest.raises(ModelError, match="nan"):
        load_language_model(changed_copy(tiny_model_dir, tmp_path / "nan", weights=nan))


def test_missing_weights_are_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    def drop(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {k: v for k, v in weights.items() if "layers.1.mlp" not in k}

    with pytest.raises(ModelError):
        load_language_model(changed_copy(tiny_model_dir, tmp_path / "missing", weights=drop))


def test_weights_of_another_shape_are_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        load_language_model(changed_copy(tiny_model_dir, tmp_path / "size", config={"hidden_size": 64}))


def test_a_family_without_max_position_embeddings_is_loaded(tmp_path: Path, tiny_model_dir: Path) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    BloomForCausalLM(BloomConfig(vocab_size=4096, hidden_size=32, n_layer=2, n_head=2)).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model_dir / name, tmp_path)
    assert load_language_model(str(tmp_path)).cfg.n_layers == 2


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", "", "inf", 3.5])
def test_an_unusable_device_is_refused(tiny_model_dir: Path, device: Any) -> None:
    with pytest.raises(ModelError, match=r"expected a usable device.*; give --device cpu"):
        load_language_model(str(tiny_model_dir), device=device)


@pytest.mark.parametrize("prefix", ["", "bridge:"])
@pytest.mark.parametrize("name", ["x" * 5000, "a/" * 2500, "owner/" + "x" * 5000, "a\0b", "", " ", "~", "pythia-70m\n"])
def test_odd_names_are_refused_in_one_short_line(prefix: str, name: str) -> None:
    with pytest.raises(ModelError, match="expected a model folder or a name") as raised:
        load_language_model(prefix + name)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("name", [None, 3, ["embedded"], {"model": "embedded"}])
def test_what_is_no_name_is_refused(name: Any) -> None:
    with pytest.raises(ModelError, match="expected the name or folder of a language model"):
        load_language_model(name)


def test_names_that_would_run_code_or_read_a_pickle_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_models.HookedSAETransformer, "from_pretrained_no_processing", None)
    with pytest.raises(ModelError, match=r"without code from the hub.*; give bridge:Qwen/Qwen-1_8B"):
        load_language_model("qwen-1.8b")
    with pytest.raises(ModelError, match="expected weights in safetensors, got a pickle"):
        load_language_model("gelu-1l")


def test_what_is_no_hook_name_is_refused(tiny_model: Any) -> None:
    for name in (None, 3, ["blocks.0.hook_resid_post"]):
        with pytest.raises(ModelError, match="expected the name of a hook"):
            resolve_hook(tiny_model, name)  # type: ignore[arg-type]


def test_unknown_names_get_suggestions() -> None:
    with pytest.raises(ModelError, match=r"Did you mean .*'pythia-70m'"):
        load_language_model("pythia-70")


@pytest.mark.parametrize(
    ("hook_name", "width"),
    [
        ("blocks.0.hook_resid_post", 32),
        ("blocks.1.hook_resid_pre", 32),
        ("blocks.0.attn.hook_z", 32),
        ("blocks.0.mlp.hook_post", 64),
        ("hook_embed", 32),
    ],
)
def test_resolve_hook_gives_the_width(tiny_model: Any, hook_name: str, width: int) -> None:
    assert resolve_hook(tiny_model, hook_name) == width


@pytest.mark.parametrize("near", ["blocks.0.hook_resid_pos", "blocks.0.resid_post", "block.0.hook_resid_post"])
def test_wrong_hooks_get_suggestions(tiny_model: Any, near: str) -> None:
    with pytest.raises(ModelError, match=r"Did you mean .*'blocks\.0\.hook_resid_post'"):
        resolve_hook(tiny_model, near)


def test_a_hook_that_is_never_run_is_refused(tiny_model: Any) -> None:
    with pytest.raises(ModelError, match="expected a hook that runs"):
        resolve_hook(tiny_model, "blocks.0.attn.hook_result")


def test_attention_patterns_are_refused(tiny_model: Any) -> None:
    with pytest.raises(ModelError, match=r"expected activations .batch, pos"):
        resolve_hook(tiny_model, "blocks.0.attn.hook_pattern")
