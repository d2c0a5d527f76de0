"""Provide texts of two kinds and SAEs of two kinds to explore."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.registry import get_sae_class
from sae_lens.saes.sae import SAEMetadata

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.exploration.corpora import Corpora
from mtsae_lens.exploration.plan import Plan
from mtsae_lens.exploration.survey import Survey
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.splicing import Splice

HOOK = "blocks.0.hook_resid_post"


@pytest.fixture(scope="session")
def sources(text_file: Path, sea_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Write many short documents, so that contexts contain separators."""
    folder = tmp_path_factory.mktemp("short")
    for path in (text_file, sea_file):
        texts = path.read_text()[:8_000].split("\n")
        (folder / f"{path.stem}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(folder / "land.jsonl"), str(folder / "sea.jsonl")


@pytest.fixture(scope="session")
def corpora(lm: Any, sources: tuple[str, str]) -> Corpora:
    """Ten contexts of each."""
    return Corpora(sources, "train", lm.cutter, n_tokens=20 * 32)


@pytest.fixture(scope="session")
def random_lm(lm: Any) -> Callable[..., HookedLM]:
    """Return a function that makes a model with a random SAE: `random_lm("topk", hook_name=...)`, or an MTSAE with given settings."""

    def make(architecture: str = "mtsae", hook_name: str = HOOK, **settings: Any) -> HookedLM:
        torch.manual_seed(1)
        sizes: dict[str, Any] = {"d_in": 32, "d_sae": 24, "k": 5, "metadata": SAEMetadata(hook_name=hook_name)} | settings
        if architecture == "mtsae":
            sae: Any = MTSAE(MTSAEConfig(**{"context_size": 32} | sizes))
        else:  # any that SAELens knows
            sae_class, config_class = get_sae_class(architecture)
            fields = config_class.__dataclass_fields__
            sae = sae_class(config_class(**{name: value for name, value in sizes.items() if name in fields}))
        for parameter in sae.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        return HookedLM(lm.model, Splice(sae), lm.cutter, batch_size=4)

    return make


@pytest.fixture(scope="session")
def look() -> Callable[..., Survey]:
    """`look(lm, corpora)`: the pass over all of the text."""

    def look(lm: HookedLM, corpora: Corpora, batch_size: int = 4, **sizes: Any) -> Survey:
        plan = Plan(**{"n_examples": 3, "n_sampled": 2, "before": 5, "after": 2, "n_ablated": 2, "n_attributed": 1} | sizes)
        survey = Survey(dataclasses.replace(lm, batch_size=batch_size), plan, len(corpora.sources), 1)
        for batch in corpora.batches(batch_size):
            survey.add(batch)
        return survey

    return look
