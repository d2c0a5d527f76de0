"""A model folder in Hugging Face layout: what it holds, told from its small files, and then its config, model and tokenizer.

What cannot be used is refused before any weights are read: quantized weights, adapters, pickled weights, models that are no decoder-only
language models. Of a multimodal model the language model inside it is taken.
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
    """What a model folder holds, loaded."""

    config: Any
    """Of the language model; of a multimodal model that is the part about text."""
    model: Any
    """A causal language model of transformers."""
    tokenizer: PreTrainedTokenizerBase
    is_part: bool
    """Whether the model was taken out of a multimodal one."""

    @property
    def family(self) -> str:
        """The class of the model, such as `LlamaForCausalLM`."""
        return (self.config.architectures or [type(self.model).__name__])[0]

    @property
    def n_embeddings(self) -> int:
        """Tokens that the model has an embedding for."""
        return self.model.get_input_embeddings().weight.shape[0]

    def context_limit(self, default: int) -> int:
        """Positions that the model was made for, or the default where its config does not say."""
        limit = getattr(self.config, "max_position_embeddings", None)
        return limit if isinstance(limit, int) and limit > 0 else default


def check_folder(folder: Path) -> dict[str, Any]:
    """The settings in a folder's `config.json`, once it is clear from the small files that its weights can be read.

    Raises:
        ModelError: a file is missing or damaged, or the weights are in a form that is not read here.
    """
    if (folder / "adapter_config.json").is_file():
        base = _read_object(folder / "adapter_config.json").get("base_model_name_or_path")
        raise ModelError(
            f"{folder}: holds an adapter (PEFT) of {base or 'another model'}, needed a whole model; merge it: "
            "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)"
        )
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder}: no config.json{_instead(folder)}; needed a Hugging Face model folder (config, safetensors, tokenizer)"
        )
    config = _read_object(folder / "config.json")
    _check_not_quantized(folder, config)
    if not list(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder}: no .safetensors file{_instead(folder)}; other weight formats can execute code and are not read; where the files are "
            "trusted, convert them: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
        )
    try:
        check_checksums(folder, f"copy the folder again, or delete {CHECKSUMS_FILE} if you changed the file on purpose")
    except DataError as error:
        raise ModelError(str(error)) from error
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(
            f"{folder}: no tokenizer ({', '.join(_TOKENIZER_FILES[:-1])} or {_TOKENIZER_FILES[-1]}); save it beside the model"
        )
    for file in sorted(folder.glob("*.safetensors")):
        if narrow := sorted(_number_types(file) & {"F8_E4M3", "F8_E5M2", "F8_E8M0", "F4"}):
            raise ModelError(_quantized(folder, f"{file.name} holds {narrow[0]} numbers"))
    return config


def read_folder(folder: Path, dtype: torch_dtype) -> FolderModel:
    """Config, model and tokenizer of a folder; no code in it is run, and no pickle is read.

    Raises:
        ModelError: see `check_folder`; or no decoder-only language model, damaged or missing weights, a tokenizer that does not fit.
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
    except Exception as error:  # transformers raises whatever a strange config or a damaged file leads it to
        raise ModelError(f"{folder}: cannot be loaded as a Hugging Face model ({one_line(error)})") from error
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ModelError(
            f"{folder}: weights are missing ({missing}, ...); transformers would draw them at random; save the whole causal language model, "
            "with its head"
        )
    text = text_model_of(model)
    loaded = FolderModel(text.config.get_text_config(), text, tokenizer, is_part=text is not model)
    check_vocabulary(str(folder), tokenizer, loaded.n_embeddings)
    return loaded


def one_line(error: BaseException) -> str:
    """An error's kind and the beginning of what it says, without line breaks."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({one_line(error)}); copy the file again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: needed a JSON object, got {type(value).__name__}; copy the file again")
    return value


def _instead(folder: Path) -> str:
    """What is there in the place of readable weights, for an error."""
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
        f"{folder}: its weights are quantized ({why}), needed float32, bfloat16 or float16; take the folder of the original model, or save "
        "this one as model.dequantize() where its library is installed"
    )


def _number_types(file: Path) -> set[str]:
    """Types of the tensors in a safetensors file, by its header; none where the file is damaged, which its loading will tell."""
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
    """The class of transformers that loads a decoder-only language model of this config, alone or inside a multimodal model."""
    family = (getattr(config, "architectures", None) or [config.model_type])[0]
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{folder}: {family} is an encoder-decoder model; needed a decoder-only language model, such as GPT-NeoX, Llama or Gemma"
        )
    for loader in _LOADERS:
        if type(config) in loader._model_mapping:
            return loader
    raise ModelError(
        f"{folder}: {family} is not a causal language model; needed one, such as GPT-NeoX, Llama or Gemma, or a multimodal model around one"
    )
