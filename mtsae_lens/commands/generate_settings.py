"""Settings of `mtsae generate`. This module loads pydantic alone."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from mtsae_lens.data.choices import Dtype
from mtsae_lens.settings import Settings


class GenerateSettings(Settings):
    """Settings of `mtsae generate`."""

    sae: Path
    """Folder of the trained SAE that the edit was made with, or `hub:OWNER/NAME:SAE_ID`."""
    edit: Path
    """Edit to apply: an `edit.json` from `mtsae unlearn` or `save_edit`."""
    prompt: str
    """Text to continue."""
    model: str | None = None
    """Language model to generate with. By default it is the one that the SAE was trained on."""
    allow_other_model: bool = False
    """Apply the edit although it was made on another language model, which is an error otherwise."""
    dtype: Dtype | None = None
    """Dtype of the language model. By default it is the same as when the SAE was trained."""
    max_new_tokens: int = Field(40, gt=0)
    """Number of tokens to add."""
    temperature: float = Field(0.0, ge=0)
    """Sampling temperature. 0 always takes the most likely token."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Random seed of the sampling."""
    device: str = "cpu"
    """Device to run on, such as `cpu`, `cuda`, `cuda:1` or `mps`."""
