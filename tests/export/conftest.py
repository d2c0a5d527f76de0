"""Provide random SAEs in tiny models of three families."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from transformers import GPT2Config, GPT2LMHeadModel

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.assets import embedded_model_dir
from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.splicing import Splice

D_SAE = 48
KINDS: dict[str, Any] = {
    "mtsae": (MTSAE, MTSAEConfig, {"k": 8, "context_size": 32, "context_gain": 1.0, "dilations": (0, 1, 3)}),
    "standard": (StandardSAE, StandardSAEConfig, {}),
    "topk": (TopKSAE, TopKSAEConfig, {"k": 8, "rescale_acts_by_decoder_norm": True}),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {"apply_b_dec_to_input": False}),
}


@pytest.fixture(scope="session")
def tiny_gpt2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-gpt"
    torch.manual_seed(0)
    sizes = {"vocab_size": 4096, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.2}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(embedded_model_dir("embedded") / name, folder)
    return folder


@pytest.fixture(scope="session")
def model_dirs(tiny_model_dir: Path, tiny_llama_dir: Path, tiny_gpt2_dir: Path) -> dict[str, str]:
    return {"neox": str(tiny_model_dir), "llama": str(tiny_llama_dir), "gpt2": str(tiny_gpt2_dir)}


@pytest.fixture(scope="session")
def models(model_dirs: dict[str, str]) -> dict[str, Any]:
    return {name: load_language_model(folder) for name, folder in model_dirs.items()}


@pytest.fixture(scope="session")
def make_lm(models: dict[str, Any]) -> Callable[..., HookedLM]:
    """`make_lm(family, hook_name, kind, **settings)`: an SAE with random weights at a hook."""

    def make(
        family: str = "neox", hook_name: str = "blocks.0.hook_resid_post", kind: str = "mtsae", **settings: Any
    ) -> HookedLM:
        sae_class, config_class, defaults = KINDS[kind]
        metadata = SAEMetadata(hook_name=hook_name, model_name=family, context_size=32)
        sae = sae_class(config_class(**({"d_in": 32, "d_sae": D_SAE, "metadata": metadata} | defaults | settings)))
        generator = torch.Generator().manual_seed(0)
        for parameter in sae.parameters():
            parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
        model = models[family]
        return HookedLM(model, Splice(sae), ContextCutter(model.tokenizer, 32), batch_size=4)

    return make


@pytest.fixture(scope="session")
def tokens() -> torch.Tensor:
    """Three texts with a BOS, one with a separator in the middle, one without BOS."""
    tokens = torch.randint(10, 4096, (3, 24), generator=torch.Generator().manual_seed(1))
    tokens[:2, 0] = 0
    tokens[1, 11] = 0
    return tokens
