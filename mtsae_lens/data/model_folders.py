"""Load the config, the model and the tokenizer of a folder in Hugging Face layout.

What cannot be used is refused before any weights are read: quantized weights, adapters, pickled weights, and models that are not
decoder-only language models. Of a multimodal model, the language model inside it is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import dtype as torch_dtype
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from mtsae_lens.checksums import CHECKSUMS_FILE, check_checksums
from mtsae_lens.data.multimodal import text_model_of
from mtsae_lens.data.vocabularies import check_vocabulary
from mtsae_lens.errors import DataError, ModelError

_LOADERS: tuple[Any, ...] = (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM)
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_QUANTIZATION_KEYS = ("quantization_config", "compression_config")
_QUANTIZATION_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")  # of GPTQ, AWQ and ModelOpt
_MAX_HEADER = 100_000_000  # bytes that safetensors itself allows


@dataclass(frozen=True)
class FolderModel:
    """The loaded contents of a model folder."""

    config: Any
    """Config of the language model; for a multimodal model, the part about text."""
    model: Any
    """A causal language model of transformers."""
    tokenizer: PreTrainedTokenizerBase
    is_part: bool
    """Whether the model was taken out of a multimodal model."""

    @property
    def family(self) -> str:
        """Return the class name of the model, such as `LlamaForCausalLM`."""
        return (self.config.architectures or [type(self.model).__name__])[0]

    @property
    def n_embeddings(self) -> int:
        """Return the number of tokens that the model has an embedding for."""
        return self.model.get_input_embeddings().weight.shape[0]

    def context_limit(self, default: int) -> int:
        """Return the number of positions that the model was made for, or `default` if its config does not say.

        Args:
            default: the value if the config has none.
        """
        limit = getattr(self.config, "max_position_embeddings", None)
        return limit if isinstance(limit, int) and limit > 0 else default


def check_folder(folder: Path) -> dict[str, Any]:
    """Check from the small files of a folder that its weights can be read, and return its `config.json`.

    Args:
        folder: a folder in Hugging Face layout.

    Returns:
        The contents of `config.json`.

    Raises:
        ModelError: a file is missing or damaged, or the weights have a form that is not read here.
    """
    if (folder / "adapter_config.json").is_file():
        base = _read_object(folder / "adapter_config.json").get("base_model_name_or_path")
        raise ModelError(
            f"{folder}: expected a whole model, got an adapter (PEFT) of {base or 'another model'}; merge it: "
            "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)"
        )
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder}: expected config.json, got none{_instead(folder)}; give a Hugging Face model folder (config, safetensors, tokenizer)"
        )
    config = _read_object(folder / "config.json")
    _check_not_quantized(folder, config)
    if not list(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder}: expected .safetensors files, got none{_instead(folder)}; other formats can execute code and are not read. If you "
            "trust the files, convert them: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
        )
    try:
        check_checksums(folder, f"copy the folder again, or delete {CHECKSUMS_FILE} if you changed the file on purpose")
    except DataError as error:
        raise ModelError(str(error)) from error
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(
            f"{folder}: expected a tokenizer ({', '.join(_TOKENIZER_FILES[:-1])} or {_TOKENIZER_FILES[-1]}), got none; save it in this folder"
        )
    for file in sorted(folder.glob("*.safetensors")):
        if narrow := sorted(_number_types(file) & {"F8_E4M3", "F8_E5M2", "F8_E8M0", "F4"}):
            raise ModelError(_quantized(folder, f"{file.name} holds {narrow[0]} numbers"))
    return config


def read_folder(folder: Path, dtype: torch_dtype) -> FolderModel:
    """Load the config, the model and the tokenizer of a folder. No code in it is run, and no pickle is read.

    Args:
        folder: a folder in Hugging Face layout.
        dtype: dtype of the weights.

    Returns:
        The loaded folder.

    Raises:
        ModelError: see `check_folder`; or the folder holds no decoder-only language model, weights are damaged or missing, or the tokenizer
            does not fit the model.
    """
    check_folder(folder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        loader = _loader(folder, config)
        model, info = loader.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ModelError, MemoryError):
        raise
    except Exception as error:  # an odd config or a damaged file makes transformers raise errors of any class
        raise ModelError(
            f"{folder}: expected a Hugging Face model, got one that does not load ({one_line(error)}); download or save it again"
        ) from error
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ModelError(
            f"{folder}: expected all weights, got a folder without some ({missing}, ...), which transformers would draw at random; save the "
            "whole causal language model, with its head"
        )
    text = text_model_of(model)
    loaded = FolderModel(text.config.get_text_config(), text, tokenizer, is_part=text is not model)
    check_vocabulary(str(folder), tokenizer, loaded.n_embeddings)
    return loaded


def one_line(error: BaseException) -> str:
    """Return the class of an error and the first 200 characters of its message, without line breaks.

    Args:
        error: the error.
    """
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: expected JSON, got {one_line(error)}; copy the file again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object, got {type(value).__name__}; copy the file again")
    return value


def _instead(folder: Path) -> str:
    """Return which unreadable weights the folder holds, as text for an error."""
    for pattern, kind in (
        ("*.gguf", "GGUF"),
        ("*.bin", "pickled"),
        ("*.pt", "pickled"),
        ("*.pth", "pickled"),
        ("*.h5", "TensorFlow"),
        ("*.msgpack", "Flax"),
    ):
        if found := sorted(folder.glob(pattern)):
            return f", but {kind} weights ({found[0].name})"
    return ""


def _check_not_quantized(folder: Path, config: Mapping[str, Any]) -> None:
    for part in (config, config.get("text_config"), config.get("llm_config")):
        for key in _QUANTIZATION_KEYS:
            if isinstance(part, Mapping) and part.get(key):
                settings = part[key]
                method = settings.get("quant_method") if isinstance(settings, Mapping) else None
                raise ModelError(_quantized(folder, f"{key} in config.json says {method or settings!r:.80}"))
    for name in _QUANTIZATION_FILES:
        if (folder / name).is_file():
            raise ModelError(_quantized(folder, f"there is a {name}"))


def _quantized(folder: Path, why: str) -> str:
    return (
        f"{folder}: expected float32, bfloat16 or float16, got quantized weights ({why}); give the folder of the original model, or save "
        "this one as model.dequantize() where its library is installed"
    )


def _number_types(file: Path) -> set[str]:
    """Return the dtypes in the header of a safetensors file; empty if the file is damaged, which loading it will report."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(_MAX_HEADER, file.stat().st_size):
            return set()
        try:
            header = json.loads(stream.read(length))
        except (ValueError, RecursionError):
            return set()
    entries = header.values() if isinstance(header, dict) else ()
    return {str(entry.get("dtype")) for entry in entries if isinstance(entry, dict)}


def _loader(folder: Path, config: Any) -> Any:
    """Return the transformers class that loads the decoder-only language model of a config, alone or inside a multimodal model."""
    family = (getattr(config, "architectures", None) or [config.model_type])[0]
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{folder}: expected a decoder-only language model, got the encoder-decoder model {family}; give one such as GPT-NeoX, Llama or "
            "Gemma"
        )
    for loader in _LOADERS:
        if type(config) in loader._model_mapping:
            return loader
    raise ModelError(
        f"{folder}: expected a causal language model, got {family}; give one such as GPT-NeoX, Llama or Gemma, or a multimodal model that "
        "contains one"
    )
