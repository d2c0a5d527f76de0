"""One loader for every language model: `embedded`, a local Hugging Face folder, or a name that TransformerLens knows; also as a bridge."""

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
from mtsae_lens.data.vocabularies import special_tokens, undo_invented_tokens
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
_PICKLED = ("NeelNanda/", "ArthurConmy/", "Baidicoot/")  # whose `.pth` files TransformerLens reads itself
_LONGEST_SHOWN = 200


@announced("loading", "model")
def load_language_model(name: str, *, device: str = "cpu", n_ctx: int | None = None, dtype: str = FLOAT32) -> AnyHookedModel:
    """A language model with hooks and its tokenizer, weights unprocessed (as SAELens trains on them), in eval mode.

    Args:
        name: `embedded`, `embedded-retrained`, a folder in Hugging Face layout, or a TransformerLens name such as `pythia-70m`; with
            `bridge:` before it, such as `bridge:embedded`, the Hugging Face model itself with hooks (`mtsae_lens.data.bridges`).
        device: where to put it.
        n_ctx: longest context to allow for a local folder; at most what the model was trained for.
        dtype: of weights and activations: `float32`, `bfloat16` or `float16` (`mtsae_lens.data.precision`). Half precision takes half the
            memory once it is loaded; while it loads, a model takes what it takes in float32, because it is checked there. Norms are computed
            in float32 whatever this says.

    Raises:
        ModelError: unknown name or dtype, unreadable folder, a model that gives other logits with hooks than without, or a hub that
            cannot be reached.
    """
    if not isinstance(name, str):
        raise ModelError(f"a language model is named, such as embedded, or given by its folder; got {name!r}")
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
    """Raise `ModelError` for a device that is not there, or that holds no numbers."""
    try:
        there = torch.empty(0, device=device).device
        if there.type == "meta":
            raise RuntimeError("it holds shapes and no numbers")
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError) as error:
        raise ModelError(f"device {device!r} cannot be used here ({one_line(error)}); try --device cpu") from error


def _bridge_folder(folder: Path, device: str, n_ctx: int | None, dtype: torch.dtype) -> HookedBridge:
    loaded = read_folder(folder, dtype)
    hf_model = loaded.model.to(device).eval()
    limit = min(loaded.context_limit(MAX_LOCAL_CONTEXT), n_ctx or sys.maxsize)
    reference = Reference.take(
        str(folder), hf_model, loaded.n_embeddings, limit
    )  # before the bridge puts its hooks into this very model
    own = special_tokens(loaded.tokenizer)
    bridge = boot_bridge(str(folder), device, dtype=dtype, hf_model=hf_model, tokenizer=loaded.tokenizer)
    undo_invented_tokens(bridge.tokenizer, own)
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
    hf_model.to("cpu")  # the device never holds both models
    with weights_in_float32(hf_model):  # rounded to `dtype`, but converted and checked in float32
        try:
            state_dict = get_pretrained_state_dict(str(folder), cfg, hf_model=hf_model, dtype=torch.float32)
        except (ValueError, NotImplementedError, AttributeError, RuntimeError) as error:
            raise ModelError(
                f"{folder}: TransformerLens cannot convert {cfg.original_architecture} ({one_line(error)}); {_try_bridge(folder)}"
            ) from error
    del loaded, hf_model  # the weights go as they are taken over
    own = special_tokens(tokenizer)
    model = HookedSAETransformer(cfg, tokenizer, move_to_device=False)
    undo_invented_tokens(model.tokenizer, own)
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
    """TransformerLens's config, read from a copy of config.json: it would guess the family from words in the folder's path."""
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
    return f"as a bridge it may run: {BRIDGE_PREFIX}{folder}"


def _with_older_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Names that TransformerLens still reads and that transformers no longer writes."""
    rope = config.get("rope_parameters") or {}
    older = {"n_ctx": config.get("n_positions"), "partial_rotary_factor": rope.get("partial_rotary_factor")}
    return {name: value for name, value in older.items() if value is not None} | config


def resolve_hook(model: AnyHookedModel, hook_name: str, head_index: int | None = None) -> int:
    """Width of the activations at a hook, found by running the model on a few tokens.

    Args:
        model: with hooks.
        hook_name: such as `blocks.3.hook_resid_post`.
        head_index: the head whose activations are meant; None for all of them, side by side. Queries may have more heads than keys and
            values.

    Raises:
        ModelError: no such hook or head; SAELens would only log a warning and splice nothing.
    """
    if not isinstance(hook_name, str):
        raise ModelError(f"a hook is named, such as blocks.3.hook_resid_post; got {hook_name!r}")
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
    if head_index is None:
        return activations[0, 0].numel()
    if activations.ndim != 4:
        raise ModelError(f"hook {hook_name!r} is not divided into heads; give hook_head_index=None, or a hook such as hook_z")
    n_heads, width = activations.shape[2:]
    if type(head_index) is not int or not 0 <= head_index < n_heads:
        raise ModelError(
            f"{hook_name} of {model.cfg.model_name} has heads 0 to {n_heads - 1}; got hook_head_index={head_index!r}"
        )
    return width


def _load_named(name: str, device: str, as_bridge: bool, dtype: torch.dtype) -> AnyHookedModel:
    known = [*EMBEDDED_MODELS, *MODEL_ALIASES, *(a for aliases in MODEL_ALIASES.values() for a in aliases)]
    if name not in known and not (as_bridge and _HUB_NAME.fullmatch(name)):  # a bridge may know a family without its members
        shown = name if len(name) <= _LONGEST_SHOWN else f"{name[:_LONGEST_SHOWN]}..."
        is_file = not as_bridge and Path(shown).is_file()
        near = "; give the folder that it is in, in Hugging Face layout" if is_file else f".{nearest(shown, known)}"
        raise ModelError(f"no language model {shown!r}: neither a folder nor a name that TransformerLens knows{near}")
    if not as_bridge:
        _check_runs_no_code(get_official_model_name(name))
    try:
        if as_bridge:
            return boot_bridge(name, device, dtype=dtype)
        return HookedSAETransformer.from_pretrained_no_processing(name, device=device, dtype=dtype)
    except (OSError, ConnectionError, RuntimeError) as error:
        raise ModelError(
            f"{name}: the Hugging Face hub cannot be reached and the model is not in the local cache ({one_line(error)}); "
            "use --model embedded or the path of a downloaded model folder"
        ) from error


def _check_runs_no_code(official_name: str) -> None:
    """Raise `ModelError` for a name with which TransformerLens would run code from the hub, or read a pickle."""
    if official_name.startswith(NEED_REMOTE_CODE_MODELS):
        raise ModelError(
            f"{official_name}: TransformerLens loads it with code from the hub, which is not run here; as a bridge it needs none: "
            f"{BRIDGE_PREFIX}{official_name}"
        )
    if official_name.startswith(_PICKLED):
        raise ModelError(
            f"{official_name}: its weights are a pickle, which can execute code and is not read; give another model"
        )
