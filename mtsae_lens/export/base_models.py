"""Open the Hugging Face model of a hooked model, find its parts by name, and save it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from mtsae_lens.assets import EMBEDDED_MODELS, embedded_model_dir
from mtsae_lens.data.bridges import BRIDGE_PREFIX
from mtsae_lens.errors import ModelError
from mtsae_lens.export.standalone import decoder_layers
from mtsae_lens.upstream import get_official_model_name

_RESIDUAL = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)$")


@dataclass(frozen=True)
class Family:
    """Names of the modules that write to the residual stream: the embeddings in the model, and the other two in every decoder layer."""

    embeddings: tuple[str, ...]
    attention_out: str
    mlp_out: str


_LLAMA = Family(("model.embed_tokens",), "self_attn.o_proj", "mlp.down_proj")
FAMILIES: dict[str, Family] = {
    "gpt_neox": Family(("gpt_neox.embed_in",), "attention.dense", "mlp.dense_4h_to_h"),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "gpt2": Family(("transformer.wte", "transformer.wpe"), "attn.c_proj", "mlp.c_proj"),
}
"""The families that can be exported, by the `model_type` of their configuration."""


@dataclass(frozen=True)
class BaseModel:
    """A causal language model of Hugging Face with its tokenizer."""

    model: Any
    tokenizer: PreTrainedTokenizerBase

    @property
    def family(self) -> Family:
        """Return the names of its modules."""
        return FAMILIES[self.model.config.model_type]

    @property
    def layers(self) -> nn.ModuleList:
        """Return its decoder layers."""
        return decoder_layers(self.model)

    def save(self, folder: Path) -> None:
        """Write weights (safetensors), configuration and tokenizer into a folder.

        Args:
            folder: the folder.
        """
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def open_base(name: str, *, dtype: torch.dtype | str = torch.float32, device: str = "cpu") -> BaseModel:
    """Open the Hugging Face model that `load_language_model(name)` adds hooks to.

    Args:
        name: `embedded`, `embedded-retrained`, a folder in Hugging Face layout, or a TransformerLens name; a prefix `bridge:` is ignored.
        dtype: dtype of the weights; `auto` for the dtype of the files.
        device: device to put the model on.

    Raises:
        ModelError: the model cannot be read, or its family is not in `FAMILIES`.
    """
    place, options = _place(name)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, use_safetensors=True, **options)
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{name}: expected a Hugging Face model with safetensors, got one that does not load ({error}); download or save it again"
        ) from error
    _check_type(name, model.config)
    return BaseModel(model.to(device).eval(), tokenizer)


def check_family(name: str) -> None:
    """Check the configuration of a model for a family that can be exported, without reading weights.

    Args:
        name: a name as for `open_base`. A model that is not found passes, because opening it raises the error.

    Raises:
        ModelError: the family is not in `FAMILIES`.
    """
    try:
        place, options = _place(name)
        config = AutoConfig.from_pretrained(place, **options)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        return
    _check_type(name, config)


def _place(name: str) -> tuple[str, dict[str, Any]]:
    """Return where transformers finds a model, and the options for loading it from there."""
    name = name.removeprefix(BRIDGE_PREFIX)
    local = name in EMBEDDED_MODELS or Path(name).is_dir()
    place = str(embedded_model_dir(name)) if name in EMBEDDED_MODELS else name
    if not local:
        place = get_official_model_name(name)
    return place, {"local_files_only": local, "trust_remote_code": False}


def _check_type(name: str, config: Any) -> None:
    if config.model_type not in FAMILIES:
        raise ModelError(
            f"{name}: expected a model of type {', '.join(FAMILIES)} to export, got {config.model_type!r}; give another model"
        )


def hooked_layer(hook_name: str) -> tuple[int, str]:
    """Return the decoder layer and the side (`pre` or `post`) of a hook of the residual stream.

    Args:
        hook_name: name of the hook.

    Raises:
        ModelError: the hook is not `blocks.<layer>.hook_resid_pre` or `blocks.<layer>.hook_resid_post`.
    """
    match = _RESIDUAL.match(hook_name)
    if match is None:
        raise ModelError(
            f"expected an edit at blocks.<layer>.hook_resid_pre or blocks.<layer>.hook_resid_post to export, got {hook_name}; give an SAE at "
            "such a hook"
        )
    return int(match[1]), match[2]
