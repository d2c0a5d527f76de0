"""Load an exported model with its edit, or attach the edit to a loaded model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from .identity import check_model
from .layer import EditedLayer

LAYERS = ("gpt_neox.layers", "model.layers", "transformer.h")  # of GPT-NeoX; Llama, Mistral and Qwen2; GPT-2
HOOK_FOLDER = "hook"
EDIT_FILE = "edit.json"
CHECKSUMS_FILE = "SHA256SUMS"


def load_edited(folder: str | Path, *, allow_other_model: bool = False, **options: Any) -> Any:
    """Load the model of a folder, in eval mode, with its edit attached.

    Args:
        folder: an exported model.
        allow_other_model: as in `attach`, for a folder whose model was changed on purpose.
        **options: options of `from_pretrained`; the default dtype is float32.

    Returns:
        The model.

    Raises:
        ValueError: a file is damaged or missing, or the model is not the one that the edit was made on.
    """
    check_files(Path(folder))
    options = {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True, "trust_remote_code": False} | options
    model = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    attach(model, folder, allow_other_model=allow_other_model)
    return model


def attach(model: nn.Module, folder: str | Path, *, allow_other_model: bool = False) -> Callable[[], None]:
    """Attach the edit of a folder to a model, in place, after a check that the edit was made on this model.

    The check compares predictions of 16 tokens, so a model that already has an edit is another model.

    Args:
        model: a Hugging Face language model.
        folder: an exported model.
        allow_other_model: warn, instead of raising an error, if the edit was made on another model.

    Returns:
        A function that removes the edit.

    Raises:
        ValueError: a file is damaged or missing, or the edit belongs to another SAE, hook or language model.
    """
    folder = Path(folder)
    check_files(folder, (f"{HOOK_FOLDER}/", EDIT_FILE))
    config = json.loads((folder / HOOK_FOLDER / "config.json").read_text(encoding="utf-8"))
    content = json.loads((folder / EDIT_FILE).read_text(encoding="utf-8"))
    if config["weights_sha256"] != content["sae"]["weights_sha256"] or config["hook_name"] != content["hook_name"]:
        raise ValueError(
            f"{folder}: expected {EDIT_FILE} and {HOOK_FOLDER}/ of one SAE and hook, got different ones; copy the whole folder again"
        )
    layers = decoder_layers(model)
    if content.get("model") is not None:  # otherwise the edit was saved without a model
        check_model(model, content["model"], folder, config.get("d_vocab"), allow_other=allow_other_model)
    layer = layers[config["layer"]]
    edited = EditedLayer(config, content, load_file(folder / HOOK_FOLDER / "weights.safetensors"))
    base: nn.Module = model.base_model  # type: ignore[assignment]
    handles = [
        base.register_forward_pre_hook(edited.before_model, with_kwargs=True),
        base.register_forward_hook(edited.after_model, with_kwargs=True, always_call=True),
        layer.register_forward_pre_hook(edited.before_layer, with_kwargs=True)
        if config["side"] == "pre"
        else layer.register_forward_hook(edited.after_layer),
    ]

    def remove() -> None:
        for handle in handles:
            handle.remove()

    return remove


def check_files(folder: Path, starts: tuple[str, ...] = ("",)) -> None:
    """Compare the files of a folder with their SHA-256 digests in `SHA256SUMS`, if it exists.

    Args:
        folder: an exported model.
        starts: only files whose names begin with one of these are compared.

    Raises:
        ValueError: a file is missing, or its content has changed.
    """
    sums = folder / CHECKSUMS_FILE
    lines = sums.read_text(encoding="utf-8").splitlines() if sums.is_file() else []
    for recorded, _, name in (line.partition("  ") for line in lines):
        if name.startswith(starts):
            digest = hashlib.sha256()
            try:
                with (folder / name).open("rb") as file:
                    while piece := file.read(1 << 20):
                        digest.update(piece)
            except OSError as error:
                raise ValueError(f"{folder / name}: {error.strerror}; copy the whole folder again") from error
            if digest.hexdigest() != recorded:
                raise ValueError(
                    f"{folder / name}: expected the content listed in {CHECKSUMS_FILE}, got other content (the file is damaged); copy the "
                    f"folder again, or delete {CHECKSUMS_FILE} if you changed the file on purpose"
                )


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the list of a model's decoder layers.

    Args:
        model: a Hugging Face model.

    Raises:
        ValueError: the model has none of the names in `LAYERS`.
    """
    for name in LAYERS:
        owner: Any = model
        for part in name.split("."):
            owner = getattr(owner, part, None)
        if owner is not None:
            return owner
    raise ValueError(
        f"expected decoder layers at {' or '.join(LAYERS)}, got none in {type(model).__name__}; give a supported model"
    )
