"""One loader for every language model: `embedded`, a local Hugging Face folder, or a name that TransformerLens knows; also as a bridge."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformer_lens.loading_from_pretrained as loading
from sae_lens import HookedSAETransformer
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from mtsae_lens.assets import EMBEDDED_MODELS, embedded_model_dir
from mtsae_lens.data.bridges import BRIDGE_PREFIX, AnyHookedModel, HookedBridge, boot_bridge
from mtsae_lens.data.precision import FLOAT32, disagreement, torch_dtype
from mtsae_lens.data.vocabularies import check_vocabulary, special_tokens, undo_invented_tokens
from mtsae_lens.errors import ModelError, nearest
from mtsae_lens.progress import announced

MAX_LOCAL_CONTEXT = 2048  # TransformerLens keeps a causal mask of n_ctx^2 per layer: 8,192 positions take gigabytes


@announced("loading", "model")
def load_language_model(name: str, *, device: str = "cpu", n_ctx: int | None = None, dtype: str = FLOAT32) -> AnyHookedModel:
    """A language model with hooks and its tokenizer, weights unprocessed (as SAELens trains on them), in eval mode.

    Args:
        name: `embedded`, `embedded-retrained`, a folder in Hugging Face layout, or a TransformerLens name such as `pythia-70m`; with
            `bridge:` before it, such as `bridge:embedded`, the Hugging Face model itself with hooks (`mtsae_lens.data.bridges`).
        device: where to put it.
        n_ctx: longest context to allow for a local folder; at most what the model was trained for.
        dtype: of weights and activations: `float32`, `bfloat16` or `float16` (`mtsae_lens.data.precision`). Half precision takes half the
            memory once it is loaded; while it loads, TransformerLens holds the weights in float32 too. It computes norms in float32
            whatever this says.

    Raises:
        ModelError: unknown name or dtype, unreadable folder, a model that gives other logits with hooks than without, or a hub that
            cannot be reached.
    """
    check_device(device)
    number_type = torch_dtype(dtype)
    as_bridge, name = name.startswith(BRIDGE_PREFIX), name.removeprefix(BRIDGE_PREFIX)
    model: AnyHookedModel
    if name in EMBEDDED_MODELS or Path(name).is_dir():
        folder = embedded_model_dir(name) if name in EMBEDDED_MODELS else Path(name)
        model = (_bridge_folder if as_bridge else _load_folder)(folder, device, n_ctx, number_type)
    else:
        model = _load_named(name, device, as_bridge, number_type)
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def check_device(device: str) -> None:
    """Raise `ModelError` for a device that is not there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {device!r} cannot be used here ({_one_line(error)}); try --device cpu") from error


def _read_folder(folder: Path, dtype: torch.dtype) -> tuple[Any, Any, Any]:
    """Config, model and tokenizer of a folder, as Hugging Face's classes."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no config.json; needed a Hugging Face model folder (config, safetensors, tokenizer)")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelError(f"{folder}: no tokenizer (tokenizer.json, tokenizer.model or vocab.json); save it beside the model")
    if not list(folder.glob("*.safetensors")):
        raise ModelError(f"{folder}: no .safetensors file; other weight formats can execute code and are not read")
    try:
        hf_config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
        hf_model, info = loaded
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, json.JSONDecodeError) as error:
        raise ModelError(f"{folder}: cannot be loaded as a Hugging Face model ({_one_line(error)})") from error
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ModelError(f"{folder}: weights are missing ({missing}, ...); transformers would draw them at random")
    check_vocabulary(str(folder), tokenizer, hf_model.get_input_embeddings().num_embeddings)
    return hf_config, hf_model, tokenizer


def _bridge_folder(folder: Path, device: str, n_ctx: int | None, dtype: torch.dtype) -> HookedBridge:
    hf_config, hf_model, tokenizer = _read_folder(folder, dtype)
    hf_model = hf_model.to(device).eval()
    limit = min(getattr(hf_config, "max_position_embeddings", MAX_LOCAL_CONTEXT), n_ctx or sys.maxsize)
    d_vocab = hf_config.vocab_size
    tokens = _probe_tokens(d_vocab, limit, device)
    expected = _logits(hf_model, tokens, d_vocab)  # before the bridge puts its hooks into this very model
    own = special_tokens(tokenizer)
    bridge = boot_bridge(str(folder), device, dtype=dtype, hf_model=hf_model, tokenizer=tokenizer)
    undo_invented_tokens(bridge.tokenizer, own)
    bridge.cfg.n_ctx = limit
    bridge.cfg.model_name = folder.resolve().name
    _check_conversion(folder, bridge, tokens, expected)
    return bridge


def _load_folder(folder: Path, device: str, n_ctx: int | None, dtype: torch.dtype) -> HookedSAETransformer:
    hf_config, hf_model, tokenizer = _read_folder(folder, dtype)
    limit = min(getattr(hf_config, "max_position_embeddings", MAX_LOCAL_CONTEXT), n_ctx or MAX_LOCAL_CONTEXT)
    cfg = _hooked_config(folder, hf_config, limit, device, dtype)
    tokens = _probe_tokens(cfg.d_vocab, cfg.n_ctx, device)
    expected = _logits(hf_model.to(device).eval(), tokens, cfg.d_vocab)
    hf_model.to("cpu")  # the device never holds both models
    try:
        state_dict = loading.get_pretrained_state_dict(str(folder), cfg, hf_model=hf_model, dtype=dtype)
    except (ValueError, NotImplementedError, AttributeError, RuntimeError) as error:
        raise ModelError(
            f"{folder}: TransformerLens cannot convert {cfg.original_architecture} ({_one_line(error)}); {_try_bridge(folder)}"
        ) from error
    del hf_model  # its weights go as they are taken over
    own = special_tokens(tokenizer)
    model = HookedSAETransformer(cfg, tokenizer, move_to_device=False)
    undo_invented_tokens(model.tokenizer, own)
    model.load_and_process_state_dict(
        state_dict, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    hooked: HookedSAETransformer = model.to(device)
    _check_conversion(folder, hooked, tokens, expected)
    return hooked


def _hooked_config(folder: Path, hf_config: Any, n_ctx: int, device: str, dtype: torch.dtype) -> Any:
    """TransformerLens's config, read from a copy of config.json: it would guess the family from words in the folder's path."""
    with tempfile.TemporaryDirectory(prefix="lm_") as neutral:
        (Path(neutral) / "config.json").write_text(
            json.dumps(_with_older_keys(json.loads((folder / "config.json").read_text())))
        )
        try:
            cfg = loading.get_pretrained_model_config(
                neutral, hf_cfg=hf_config.to_dict(), device=device, n_ctx=n_ctx, dtype=dtype
            )
        except (NotImplementedError, AttributeError, KeyError, TypeError) as error:
            family = (hf_config.architectures or [hf_config.model_type])[0]
            raise ModelError(
                f"{folder}: TransformerLens does not know the family {family} ({_one_line(error)}); {_try_bridge(folder)}"
            ) from error
    cfg.model_name = folder.resolve().name
    rope = getattr(hf_config, "rope_parameters", None) or {}
    if "rope_theta" in rope:
        cfg.rotary_base = rope["rope_theta"]  # TransformerLens assumes 10,000 for GPT-NeoX whatever the config says
    return cfg


def _try_bridge(folder: Path) -> str:
    return f"as a bridge it may run: {BRIDGE_PREFIX}{folder}"


def _with_older_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Names that TransformerLens still reads and that transformers no longer writes."""
    rope = config.get("rope_parameters") or {}
    older = {"n_ctx": config.get("n_positions"), "partial_rotary_factor": rope.get("partial_rotary_factor")}
    return {name: value for name, value in older.items() if value is not None} | config


def _probe_tokens(d_vocab: int, n_ctx: int, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, d_vocab, (1, min(128, n_ctx)), generator=generator).to(device)


@torch.no_grad()
def _logits(model: Any, tokens: Tensor, d_vocab: int) -> Tensor:
    output = model(tokens)
    return getattr(output, "logits", output)[..., :d_vocab]


def _check_conversion(folder: Path, model: AnyHookedModel, tokens: Tensor, expected: Tensor) -> None:
    """The hooked model must give the logits of the model it was made from."""
    got = _logits(model, tokens, expected.shape[-1])
    difference = disagreement(got, expected, model.cfg.dtype, model.cfg.n_layers)
    if difference is not None:
        raise ModelError(f"{folder}: with hooks, the model gives other logits ({difference})")


def resolve_hook(model: AnyHookedModel, hook_name: str) -> int:
    """Width of the activations at a hook (heads flattened), found by running the model on a few tokens.

    Raises:
        ModelError: no such hook; SAELens would only log a warning and splice nothing.
    """
    if hook_name not in model.hook_dict:
        raise ModelError(f"no hook {hook_name!r} in {model.cfg.model_name}.{nearest(hook_name, model.hook_dict)}")
    n_tokens = min(7, model.cfg.n_ctx)  # not a likely number of heads, so that an attention pattern shows by its shape
    tokens = torch.zeros(1, n_tokens, dtype=torch.long, device=model.cfg.device)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=[hook_name], prepend_bos=False)
    if hook_name not in cache:
        raise ModelError(
            f"hook {hook_name!r} is never run in {model.cfg.model_name}: TransformerLens leaves it off; give another"
        )
    activations = cache[hook_name]
    if activations.shape[:2] != (1, n_tokens):
        raise ModelError(f"hook {hook_name!r} is not (batch, pos, ...): it has shape {tuple(activations.shape)}")
    return activations[0, 0].numel()


def _load_named(name: str, device: str, as_bridge: bool, dtype: torch.dtype) -> AnyHookedModel:
    known = [*EMBEDDED_MODELS, *loading.MODEL_ALIASES, *(a for aliases in loading.MODEL_ALIASES.values() for a in aliases)]
    if name not in known and not (as_bridge and "/" in name):  # a bridge may know a family without knowing its members
        raise ModelError(
            f"no language model {name!r}: neither a folder nor a name that TransformerLens knows.{nearest(name, known)}"
        )
    try:
        if as_bridge:
            return boot_bridge(name, device, dtype=dtype)
        return HookedSAETransformer.from_pretrained_no_processing(name, device=device, dtype=dtype)
    except (OSError, ConnectionError, RuntimeError) as error:
        raise ModelError(
            f"{name}: the Hugging Face hub cannot be reached and the model is not in the local cache ({_one_line(error)}); "
            "use --model embedded or the path of a downloaded model folder"
        ) from error


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
