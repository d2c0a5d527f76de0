"""Settings of `mtsae cache`. This module loads pydantic alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from mtsae_lens.data.choices import FLOAT32, Dtype
from mtsae_lens.settings import Settings


class CacheSettings(Settings):
    """Settings of `mtsae cache`."""

    model: str = "embedded"
    """Language model: `embedded`, a name that TransformerLens knows, or a local Hugging Face folder; `bridge:` before either
    loads it as a TransformerBridge."""
    dtype: Dtype = FLOAT32
    """Dtype of the language model."""
    hook_name: tuple[str, ...] = Field(("blocks.3.hook_resid_post",), min_length=1)
    """TransformerLens hooks whose activations to keep. All are read in one pass of the model."""
    dataset: str = "embedded"
    """Text to read: `embedded`, one embedded domain, a dataset on the hub, or a .txt, .jsonl or .parquet file or a folder of them. Join
    several texts with `+`."""
    n_tokens: int = Field(1_000_000, gt=0)
    """Number of tokens to keep. It is rounded up to whole forward passes. A text that is shorter is read again, in another order."""
    out: Path = Path("runs/cache")
    """Folder for the cache. If it holds a part of a cache, the rest is written, with the settings of that part."""
    storage_dtype: Dtype = FLOAT32
    """Dtype of the activations on disk. The others take half the room of float32."""
    context_size: int = Field(128, gt=1)
    """Number of positions in a context."""
    prepend_bos: bool = True
    """Begin every context with the BOS token."""
    packed: bool = True
    """Fill every context with several documents. Without packing, a context holds one document."""
    lm_batch_size_sequences: int = Field(32, gt=0)
    """Number of contexts in a forward pass of the language model."""
    shard_size_mb: int = Field(256, gt=0)
    """Maximum size of a file in megabytes, but at least one forward pass. A run that is killed loses at most one shard."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Random seed of the order of the text."""
    device: str = "cpu"
    """Device to run on, such as `cpu`, `cuda`, `cuda:1` or `mps`."""

    @field_validator("hook_name", mode="before")
    @classmethod
    def _as_several(cls, value: Any) -> Any:
        """Take one hook, as `mtsae train` does, for a list of one."""
        return (value,) if isinstance(value, str) else value
