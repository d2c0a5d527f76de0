"""Load a language model with hooks: `embedded`, a local Hugging Face folder, or a name that TransformerLens knows, also as a bridge."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from sae_lens import HookedSAETransformer

from mtsae_lens.assets import EMBEDDED_MODELS, embedded_model_dir
from mtsae_lens.data.bridges import BRIDGE_PREFIX, AnyHookedModel, HookedBridge, boot_bridge
from mtsae_lens.data.choices import FLOAT32
from mtsae_lens.data.conversion import Reference, weights_in_float32
from mtsae_lens.data.model_folders import FolderModel, one_line, read_folder
from mtsae_lens.data.precision import HALF_PRECISION, torch_dtype
from mtsae_lens.data.vocabularies import remove_placeholder_tokens, special_tokens
from mtsae_lens.errors import ModelError, nearest
from mtsae_lens.progress import announced
from mtsae_lens.upstream import (
    MODEL_ALIASES,
    NEED_REMOTE_CODE_MODELS,
    get_official_model_name,
    get_pretrained_model_config,
    get_pretrained_state_dict,
)

MAX_LOCAL_CONTEXT = 2048  # TransformerLens keeps a causal mask of n_ctx^2 per layer: 8,192 positions take gigabytes

_HUB_NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
_PICKLED = ("NeelNanda/", "ArthurConmy/", "Baidicoot/")  # TransformerLens itself unpickles the `.pth` files of these owners
_LONGEST_SHOWN = 200


@announced("loading", "model")
def load_language_model(name: str, *, device: str = "cpu", n_ctx: int | None = None, dtype: str = FLOAT32) -> AnyHookedModel:
    """Load a language model with hooks and its tokenizer, in eval mode, with unprocessed weights (SAELens trains on these).

    Args:
        name: `embedded`, `embedded-retrained`, a folder in Hugging Face layout, or a TransformerLens name such as `pythia-70m`. With the
            prefix `bridge:`, as in `bridge:embedded`, it is the Hugging Face model itself with hooks (`mtsae_lens.data.bridges`).
        device: device to put the model on.
        n_ctx: longest context of a model from a local folder, at most what the model was trained for; None for its default.
        dtype: dtype of weights and activations: `float32`, `bfloat16` or `float16` (`mtsae_lens.data.precision`). Half precision halves the
            memory of the loaded model. While it loads, a model takes as much memory as in float32, because it is checked in float32. Norms
            are computed in float32 for every dtype.

    Returns:
        A `HookedSAETransformer` or a `HookedBridge`, with `requires_grad` off.

    Raises:
        ModelError: the name or dtype is unknown, the folder cannot be read, the model gives different logits with hooks than without, or
            the hub cannot be reached.
    """
    if not isinstance(name, str):
        raise ModelError(f"expected the name or folder of a language model, got {name!r}; give one, such as 'embedded'")
    check_device(device)
    number_type = torch_dtype(dtype)
    as_bridge, name = name.startswith(BRIDGE_PREFIX), name.removeprefix(BRIDGE_PREFIX)
    model: AnyHookedModel
    if name in EMBEDDED_MODELS or _is_folder(name):
        folder = embedded_model_dir(name) if name in EMBEDDED_MODELS else Path(name)
        model = (_bridge_folder if as_bridge else _load_folder)(folder, device, n_ctx, number_type)
    else:
        model = _load_named(name, device, as_bridge, number_type)
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def _is_folder(name: str) -> bool:
    try:
        return bool(name.strip()) and Path(name).is_dir()
    except (OSError, ValueError):  # too long for a path, or with a zero byte
        return False


def check_device(device: str) -> None:
    """Check that tensors can be put on a device.

    Args:
        device: such as `cpu` or `cuda:0`.

    Raises:
        ModelError: the device does not exist here, or holds no values (`meta`).
    """
    try:
        there = torch.empty(0, device=device).device
        if there.type == "meta":
            raise RuntimeError("it holds shapes but no values")
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError) as error:
        raise ModelError(f"expected a usable device, got {device!r} ({one_line(error)}); give --device cpu") from error


def _bridge_folder(folder: Path, device: str, n_ctx: int | None, dtype: torch.dtype) -> HookedBridge:
    loaded = read_folder(folder, dtype)
    hf_model = loaded.model.to(device).eval()
    limit = min(loaded.context_limit(MAX_LOCAL_CONTEXT), n_ctx or sys.maxsize)
    reference = Reference.take(
        str(folder), hf_model, loaded.n_embeddings, limit
    )  # taken first, because the bridge puts its hooks into this same model
    own = special_tokens(loaded.tokenizer)
    bridge = boot_bridge(str(folder), device, dtype=dtype, hf_model=hf_model, tokenizer=loaded.tokenizer)
    remove_placeholder_tokens(bridge.tokenizer, own)
    bridge.cfg.n_ctx = limit
    bridge.cfg.model_name = folder.resolve().name
    with weights_in_float32(bridge):
        reference.check_float32(bridge)
    if dtype in HALF_PRECISION:
        reference.check_half(bridge)
    return bridge


def _load_folder(folder: Path, device: str, n_ctx: int | None, dtype: torch.dtype) -> HookedSAETransformer:
    loaded = read_folder(folder, dtype)
    limit = min(loaded.context_limit(MAX_LOCAL_CONTEXT), n_ctx or MAX_LOCAL_CONTEXT)
    cfg = _hooked_config(folder, loaded, limit, device)
    hf_model, tokenizer = loaded.model.to(device).eval(), loaded.tokenizer
    reference = Reference.take(str(folder), hf_model, cfg.d_vocab, cfg.n_ctx)
    hf_model.to("cpu")  # so that the device never holds both models
    with weights_in_float32(hf_model):  # the weights are rounded to `dtype` already, but converted and checked in float32
        try:
            state_dict = get_pretrained_state_dict(str(folder), cfg, hf_model=hf_model, dtype=torch.float32)
        except (ValueError, NotImplementedError, AttributeError, RuntimeError) as error:
            raise ModelError(
                f"{folder}: TransformerLens cannot convert {cfg.original_architecture} ({one_line(error)}); {_try_bridge(folder)}"
            ) from error
    del loaded, hf_model  # so that each weight is freed once it is copied
    own = special_tokens(tokenizer)
    model = HookedSAETransformer(cfg, tokenizer, move_to_device=False)
    remove_placeholder_tokens(model.tokenizer, own)
    model.load_and_process_state_dict(
        state_dict, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    del state_dict
    hooked: HookedSAETransformer = model.to(device, print_details=False)
    reference.check_float32(hooked)
    if dtype in HALF_PRECISION:
        hooked = hooked.to(dtype, print_details=False)
        reference.check_half(hooked)
    return hooked


def _hooked_config(folder: Path, loaded: FolderModel, n_ctx: int, device: str) -> Any:
    """Build TransformerLens's config from a copy of config.json in a neutral folder: it would guess the family from words in the path."""
    hf_config = loaded.config
    written = hf_config.to_dict() if loaded.is_part else json.loads((folder / "config.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="lm_") as neutral:
        (Path(neutral) / "config.json").write_text(json.dumps(_with_older_keys(written), default=str))
        try:
            cfg = get_pretrained_model_config(neutral, hf_cfg=hf_config.to_dict(), device=device, n_ctx=n_ctx)
        except (NotImplementedError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"{folder}: TransformerLens does not know the family {loaded.family} ({one_line(error)}); {_try_bridge(folder)}"
            ) from error
    cfg.model_name = folder.resolve().name
    rope = getattr(hf_config, "rope_parameters", None) or {}
    if "rope_theta" in rope:
        cfg.rotary_base = rope["rope_theta"]  # TransformerLens assumes 10,000 for GPT-NeoX whatever the config says
    return cfg


def _try_bridge(folder: Path) -> str:
    return f"try it as a bridge: {BRIDGE_PREFIX}{folder}"


def _with_older_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Add the names that TransformerLens still reads and that transformers no longer writes."""
    rope = config.get("rope_parameters") or {}
    older = {"n_ctx": config.get("n_positions"), "partial_rotary_factor": rope.get("partial_rotary_factor")}
    return {name: value for name, value in older.items() if value is not None} | config


def resolve_hook(model: AnyHookedModel, hook_name: str, head_index: int | None = None) -> int:
    """Return the width of the activations at a hook, found by running the model on a few tokens.

    Args:
        model: a model with hooks.
        hook_name: such as `blocks.3.hook_resid_post`.
        head_index: the head whose activations are used; None for all heads side by side. Queries may have more heads than keys and values.

    Returns:
        The number of activations per position, `d_in`.

    Raises:
        ModelError: the hook or the head does not exist. SAELens would only log a warning and splice nothing.
    """
    if not isinstance(hook_name, str):
        raise ModelError(f"expected the name of a hook, got {hook_name!r}; give one, such as 'blocks.3.hook_resid_post'")
    if hook_name not in model.hook_dict:
        raise ModelError(f"expected a hook of {model.cfg.model_name}, got {hook_name!r}.{nearest(hook_name, model.hook_dict)}")
    n_tokens = min(7, model.cfg.n_ctx)  # an unlikely number of heads, so that the shape reveals an attention pattern
    tokens = torch.zeros(1, n_tokens, dtype=torch.long, device=model.cfg.device)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=[hook_name], prepend_bos=False)
    if hook_name not in cache:
        raise ModelError(
            f"expected a hook that runs in {model.cfg.model_name}, got {hook_name!r}, which TransformerLens switches off by default; "
            "give another hook"
        )
    activations = cache[hook_name]
    if activations.shape[:2] != (1, n_tokens):
        raise ModelError(
            f"expected activations (batch, pos, ...) at hook {hook_name!r}, got shape {tuple(activations.shape)}; give another hook"
        )
    if head_index is None:
        return activations[0, 0].numel()
    if activations.ndim != 4:
        raise ModelError(
            f"expected a hook with heads, got {hook_name!r} of shape {tuple(activations.shape)}; give hook_head_index=None, or a hook "
            "such as hook_z"
        )
    n_heads, width = activations.shape[2:]
    if type(head_index) is not int or not 0 <= head_index < n_heads:
        raise ModelError(
            f"expected hook_head_index from 0 to {n_heads - 1} for {hook_name} of {model.cfg.model_name}, got {head_index!r}; "
            "give one in this range"
        )
    return width


def _load_named(name: str, device: str, as_bridge: bool, dtype: torch.dtype) -> AnyHookedModel:
    known = [*EMBEDDED_MODELS, *MODEL_ALIASES, *(a for aliases in MODEL_ALIASES.values() for a in aliases)]
    if name not in known and not (
        as_bridge and _HUB_NAME.fullmatch(name)
    ):  # a bridge may run a model that TransformerLens's list of names lacks
        shown = name if len(name) <= _LONGEST_SHOWN else f"{name[:_LONGEST_SHOWN]}..."
        is_file = not as_bridge and Path(shown).is_file()
        near = "; give the folder that it is in, in Hugging Face layout" if is_file else f".{nearest(shown, known)}"
        raise ModelError(f"expected a model folder or a name that TransformerLens knows, got {shown!r}{near}")
    if not as_bridge:
        _check_runs_no_code(get_official_model_name(name))
    try:
        if as_bridge:
            return boot_bridge(name, device, dtype=dtype)
        return HookedSAETransformer.from_pretrained_no_processing(name, device=device, dtype=dtype)
    except (OSError, ConnectionError, RuntimeError) as error:
        raise ModelError(
            f"{name}: expected the model in the local cache or a reachable Hugging Face hub, got neither ({one_line(error)}); "
            "give --model embedded or the path of a downloaded model folder"
        ) from error


def _check_runs_no_code(official_name: str) -> None:
    """Check that loading a model runs no code from the hub and reads no pickle.

    Raises:
        ModelError: TransformerLens would run code from the hub, or read a pickle.
    """
    if official_name.startswith(NEED_REMOTE_CODE_MODELS):
        raise ModelError(
            f"{official_name}: expected a model that loads without code from the hub, got one that TransformerLens loads with it; give "
            f"{BRIDGE_PREFIX}{official_name}, which needs none"
        )
    if official_name.startswith(_PICKLED):
        raise ModelError(
            f"{official_name}: expected weights in safetensors, got a pickle, which can execute code; give another model"
        )
