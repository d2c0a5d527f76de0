"""Settings of `mtsae evaluate`. This module loads pydantic alone."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from mtsae_lens.data.choices import Dtype
from mtsae_lens.settings import Settings


class EvaluateSettings(Settings):
    """Settings of `mtsae evaluate`."""

    sae: Path
    """Folder of a trained SAE of any architecture, or `hub:OWNER/NAME:SAE_ID`."""
    out: Path = Path("runs/evaluate")
    """Folder for the metrics and the report."""
    dataset: str | None = None
    """Held-out text, of which the split `test` is read. By default it is the dataset that the SAE was trained on."""
    model: str | None = None
    """Language model to evaluate on. By default it is the one that the SAE was trained on."""
    dtype: Dtype | None = None
    """Dtype of the language model. By default it is the same as when the SAE was trained."""
    n_contexts: int = Field(512, gt=0)
    """Maximum number of contexts to read from a split, for all measurements."""
    n_table_contexts: int = Field(1024, ge=0)
    """Number of contexts of training text on which the mean of every token is fitted, for comparison with a transcoder. 0 leaves it out."""
    n_scale_contexts: int = Field(256, ge=0)
    """Number of contexts from each of SELECT and TEST on which the scales of an MTSAE are analyzed, `n_contexts` at most. 0 skips the
    analysis."""
    n_scale_features: int = Field(1024, gt=0)
    """Number of randomly drawn features in the scale analysis. Memory use grows with it."""
    n_firing_features: int = Field(1024, ge=0)
    """Number of randomly drawn features for which it is measured when they fire. Memory use grows with it and with the length of a
    context. 0 skips the measurement."""
    value_bits: int = Field(0, ge=0, le=16)
    """Also measure the bits per token of an adaptive code, with 2^`value_bits` levels for the value of an active feature. It reads the split
    `select` too. 0 skips the measurement."""
    batch_size: int = Field(16, gt=0)
    """Maximum number of contexts in a forward pass. A large vocabulary or SAE lowers it automatically."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Random seed."""
    device: str = "cpu"
    """Device to run on, such as `cpu`, `cuda`, `cuda:1` or `mps`."""
