"""Read held-out text once for all SAEs: activations of TUNE to choose on, contexts of TEST to measure on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Float
from sae_lens import SAE
from torch import Tensor

from mtsae_lens.data.activations import masked_positions, read_hooks
from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.contexts import ContextCutter, read_tokens
from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.data.massive import massive_positions, norm_limit
from mtsae_lens.evaluation.massive import ExplainedVariance
from mtsae_lens.progress import track

_BATCH_SIZE = 16  # contexts


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


@lru_cache(maxsize=1)
def _load(name: str, dtype: str, device: str) -> AnyHookedModel:
    return load_language_model(name, device=device, dtype=dtype)


@lru_cache(maxsize=8)
def tune_activations(
    text: HeldOutText, hook_name: str, n_contexts: int
) -> tuple[Float[Tensor, "context pos d_in"], Bool[Tensor, "context pos"]]:
    """Read the activations of TUNE, zero at masked positions, and which positions count: those that are neither masked nor massive.

    Args:
        text: the text.
        hook_name: the hook.
        n_contexts: largest number of contexts.
    """
    model, cutter = text.load()
    tokens = read_tokens(text.dataset, "tune", cutter, n_contexts).tokens
    read = [
        read_hooks(model, [hook_name], batch)[0] for batch in track(tokens.split(_BATCH_SIZE), "reading tune text", "batch")
    ]
    masked = masked_positions(cutter, tokens)
    h = torch.cat(read).cpu().masked_fill(masked.unsqueeze(-1), 0.0)
    return h, ~masked & ~massive_positions(h, norm_limit(h))


@torch.no_grad()
def measure_on_tune(sae: SAE[Any], text: HeldOutText, hook_name: str, n_contexts: int) -> tuple[float, float]:
    """Measure an SAE on TUNE.

    Args:
        sae: the SAE.
        text: the text.
        hook_name: the hook.
        n_contexts: largest number of contexts.

    Returns:
        L0, and the explained variance, both over positions that are not massive.
    """
    explained, n_active = ExplainedVariance(), 0
    for h, counted in zip(*(t.split(_BATCH_SIZE) for t in tune_activations(text, hook_name, n_contexts)), strict=True):
        given = h.to(sae.device)
        if sae.cfg.reshape_activations == "hook_z":  # which takes the heads apart
            given = given.unflatten(-1, (text.load()[0].cfg.n_heads, -1))
        feature_acts = sae.encode(given)
        reconstruction = sae.decode(feature_acts).reshape(h.shape).cpu()
        explained.add(h[counted], reconstruction[counted])
        n_active += int((feature_acts.reshape(*h.shape[:2], -1).cpu() != 0)[counted].sum())
    return n_active / max(explained.n_rows, 1), explained.value
