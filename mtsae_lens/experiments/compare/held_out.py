"""Read held-out text once for all SAEs, and measure an SAE on TUNE."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Float
from sae_lens import SAE
from torch import Tensor

from mtsae_lens.data.activations import read_hooks
from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.choices import Split
from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.data.masks import zero_rows
from mtsae_lens.data.massive import find_massive
from mtsae_lens.data.token_tables import read_tokens
from mtsae_lens.evaluation.fidelity import check_contexts
from mtsae_lens.evaluation.massive import ExplainedVariance
from mtsae_lens.progress import track

_BATCH_SIZE = 16  # contexts
SPLITS: tuple[Split, ...] = ("select", "tune", "test")
"""Splits that are measured on: features are coded with counts from SELECT, settings are chosen on TUNE, and TEST is measured once."""


@dataclass(frozen=True)
class HeldOutText:
    """A text as a language model reads it, for every split."""

    model: str
    dtype: str
    dataset: str
    context_size: int
    prepend_bos: bool
    packed: bool
    device: str

    def load(self) -> tuple[AnyHookedModel, ContextCutter]:
        """Return the language model, loaded once, and how its contexts are cut."""
        model = _load(self.model, self.dtype, self.device)
        assert model.tokenizer is not None
        return model, ContextCutter(model.tokenizer, self.context_size, self.prepend_bos, self.packed)

    def check_splits(self) -> None:
        """Check, before anything is trained, that each split that is measured on has a context.

        Raises:
            DataError: a split has none.
        """
        _, cutter = self.load()
        for split in SPLITS:
            check_contexts(read_tokens(self.dataset, split, cutter, 1), cutter)


@lru_cache(maxsize=1)
def _load(name: str, dtype: str, device: str) -> AnyHookedModel:
    return load_language_model(name, device=device, dtype=dtype)


@lru_cache(maxsize=8)
def read_split(
    text: HeldOutText, split: Split, hook_name: str, n_contexts: int
) -> tuple[Float[Tensor, "context pos d_in"], Bool[Tensor, "context pos"]]:
    """Read the activations of a split, zero at masked positions, and which positions count: those that are neither masked nor massive.

    Args:
        text: the text.
        split: the split.
        hook_name: the hook.
        n_contexts: largest number of contexts.
    """
    model, cutter = text.load()
    tokens = read_tokens(text.dataset, split, cutter, n_contexts).tokens
    batches = track(tokens.split(_BATCH_SIZE), f"reading {split} text", "batch")
    h = torch.cat([read_hooks(model, [hook_name], batch)[0].cpu() for batch in batches])
    masked = cutter.masked(tokens)
    return zero_rows(h, masked), ~masked & ~find_massive(h, masked)


def split_batches(
    sae: SAE[Any], text: HeldOutText, split: Split, n_contexts: int
) -> Iterator[tuple[Float[Tensor, "batch pos *heads d_in"], Bool[Tensor, "batch pos"]]]:
    """Yield batches of what `read_split` returns at the hook of an SAE, with heads apart where the SAE reads them so.

    Args:
        sae: the SAE.
        text: the text.
        split: the split.
        n_contexts: largest number of contexts.
    """
    tensors = read_split(text, split, str(sae.cfg.metadata.hook_name), n_contexts)
    for h, counted in zip(*(t.split(_BATCH_SIZE) for t in tensors), strict=True):
        if sae.cfg.reshape_activations == "hook_z":
            yield h.unflatten(-1, (text.load()[0].cfg.n_heads, -1)), counted
        else:
            yield h, counted


@torch.no_grad()
def measure_on_tune(sae: SAE[Any], text: HeldOutText, n_contexts: int) -> tuple[float, float]:
    """Measure an SAE on TUNE.

    Args:
        sae: the SAE.
        text: the text.
        n_contexts: largest number of contexts.

    Returns:
        L0, and the explained variance, both over positions that are not massive.
    """
    explained, n_active = ExplainedVariance(), 0
    for h, counted in split_batches(sae, text, "tune", n_contexts):
        feature_acts = sae.encode(h.to(sae.device))
        reconstruction = sae.decode(feature_acts).reshape(*h.shape[:2], -1).cpu()
        explained.add(h.flatten(2)[counted], reconstruction[counted])
        n_active += int((feature_acts.reshape(*h.shape[:2], -1).cpu() != 0)[counted].sum())
    return n_active / max(explained.n_rows, 1), explained.value
