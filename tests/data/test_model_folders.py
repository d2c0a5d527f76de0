"""Test that model folders that cannot be used are refused in one line, before weights are read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXModel,
    T5Config,
    T5ForConditionalGeneration,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from mtsae_lens.data import model_folders
from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.errors import ModelError

PREFIXES = ("", "bridge:")


@pytest.fixture
def folder(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama_dir, tmp_path / "model"))


def set_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(folder: Path, pattern: str) -> None:
    for prefix in PREFIXES:
        with pytest.raises(ModelError, match=pattern) as raised:
            load_language_model(f"{prefix}{folder}")
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq"},
        {"quant_method": "compressed-tensors"},
        {"quant_method": "fp8"},
        {"load_in_8bit": True},
    ],
    ids=lambda settings: settings.get("quant_method", "8bit"),
)
@pytest.mark.parametrize("nested", [False, True])
def test_quantized_weights(folder: Path, settings: dict[str, Any], nested: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_folders.AutoModelForCausalLM, "from_pretrained", None)  # no weight is read
    part = {"quantization_config": settings}
    set_config(folder, **({"text_config": part} if nested else part))
    refused(
        folder,
        r"quantized weights \(quantization_config in config.json says "
        rf".*{settings.get('quant_method', '8bit')}.*give the folder of the original",
    )


def test_quantized_weights_that_the_config_does_not_tell(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_folders.AutoModelForCausalLM, "from_pretrained", None)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("down_proj.weight"))
    save_file(weights | {name: weights[name].to(torch.float8_e4m3fn)}, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, r"quantized weights \(model.safetensors holds F8_E4M3 numbers\)")
    (folder / "quantize_config.json").write_text("{}")
    refused(folder, r"quantized weights \(there is a quantize_config.json\)")


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        ("{", r"config\.json: expected JSON"),
        ("", r"config\.json: expected JSON"),
        ("[" * 100_000, r"config\.json: expected JSON"),
        ("[]", r"config\.json: expected a JSON object, got list"),
        ("null", r"config\.json: expected a JSON object, got NoneType"),
        ("{}", "expected a Hugging Face model"),
        ('{"model_type": "no-such-family"}', "expected a Hugging Face model"),
        ('{"model_type": ["llama"]}', "expected a Hugging Face model"),
        ('{"model_type": "llama", "num_attention_heads": "many"}', "expected a Hugging Face model"),
        ('{"model_type": "llama", "rope_parameters": 7}', "expected a Hugging Face model"),
    ],
)
def test_damaged_configs(folder: Path, content: str, pattern: str) -> None:
    (folder / "config.json").write_text(content)
    refused(folder, pattern)
    (folder / "config.json").write_bytes(b"\xff\xfe\x00{")
    refused(folder, "expected JSON")


def test_adapters(folder: Path) -> None:
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "owner/base"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    refused(folder, r"expected a whole model, got an adapter \(PEFT\) of owner/base; merge it")
    (folder / "config.json").unlink()
    refused(folder, r"got an adapter \(PEFT\) of owner/base")


def test_other_weight_formats(folder: Path, tiny_llama_dir: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, r"expected \.safetensors files, got none, but pickled weights \(pytorch_model\.bin\); .* convert them")
    (folder / "pytorch_model.bin").rename(folder / "model.Q4_K_M.gguf")
    refused(folder, r"expected \.safetensors files, got none, but GGUF weights \(model\.Q4_K_M\.gguf\)")
    (folder / "config.json").unlink()
    refused(folder, r"expected config\.json, got none, but GGUF weights")
    refused(folder / "model.Q4_K_M.gguf", "expected a model folder or a name")
    with pytest.raises(ModelError, match=r"model\.safetensors.*give the folder that it is in"):
        load_language_model(str(tiny_llama_dir / "model.safetensors"))


def test_shards(folder: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="300KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    for prefix in PREFIXES:
        assert load_language_model(f"{prefix}{folder}").cfg.n_layers == 2
    index = folder / "model.safetensors.index.json"
    before = index.read_text()
    for damaged in ("{", "[]", '{"weight_map": 3}', "{}"):
        index.write_text(damaged)
        refused(folder, "expected a Hugging Face model")
    index.write_text(before)
    shards[-1].unlink()
    refused(folder, "expected a Hugging Face model")


def test_tokenizers(folder: Path, save_llama: Callable[..., Path], tmp_path: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    refused(folder, "expected a Hugging Face model")
    (folder / "tokenizer.json").unlink()
    refused(folder, r"expected a tokenizer \(tokenizer\.json, tokenizer\.model or vocab\.json\), got none")
    refused(save_llama(tmp_path / "small", vocab_size=1000), "at most 1,000 tokens, as the model has embeddings, got 4,096")


def test_models_of_another_kind(tmp_path: Path, tiny_model_dir: Path) -> None:
    sizes = {"vocab_size": 4096, "d_model": 16}
    t5 = T5ForConditionalGeneration(T5Config(**sizes, d_ff=32, d_kv=8, num_layers=1, num_heads=2, decoder_start_token_id=0))
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    whisper = WhisperForConditionalGeneration(
        WhisperConfig(**sizes, **layers, encoder_ffn_dim=32, decoder_ffn_dim=32, pad_token_id=0)
    )
    wav2vec = Wav2Vec2ForCTC(
        Wav2Vec2Config(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    )
    kinds = {
        "got the encoder-decoder model T5ForConditionalGeneration": t5,
        "got the encoder-decoder model WhisperForConditionalGeneration": whisper,
        "expected a causal language model, got Wav2Vec2ForCTC": wav2vec,
    }
    for number, (pattern, model) in enumerate(kinds.items()):
        folder = tmp_path / str(number)
        model.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny_model_dir / name, folder)
        refused(folder, pattern)


def test_a_model_without_its_head(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "base"))
    GPTNeoXModel.from_pretrained(tiny_model_dir).save_pretrained(folder)
    refused(
        folder, r"got a folder without some \((lm_head|embed_out).weight.*save the whole causal language model, with its head"
    )
