"""Read contexts through the SAE: the strongest features of every token, and its loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mtsae_lens.data.batch_sizes import contexts_at_once
from mtsae_lens.exploration.firings import read_batch
from mtsae_lens.facts.folder import N_STRONGEST
from mtsae_lens.progress import track
from mtsae_lens.splice.hooked_lm import HookedLM


@dataclass(frozen=True, eq=False)
class ReadTexts:
    """Contexts with their strongest features and their losses."""

    tokens: Int[Tensor, "context pos"]
    activations: Float[Tensor, "context pos n"]  # highest first; 0 where fewer features fire
    features: Int[Tensor, "context pos n"]
    nll: Float[Tensor, "context pos"]  # loss of each token given the tokens before it, in nats; NaN for the first


@torch.no_grad()
def read_texts(lm: HookedLM, tokens: Int[Tensor, "context pos"], n_strongest: int = N_STRONGEST) -> ReadTexts:
    """Find the strongest features of each token, and its loss.

    Args:
        lm: model and SAE.
        tokens: contexts.
        n_strongest: features kept per token.
    """
    parts = []
    batches = tokens.split(contexts_at_once(lm.batch_size, tokens.shape[1], lm.sae.cfg.d_sae))
    for batch in track(batches, "reading texts", "batch"):
        on_device = batch.to(lm.model.cfg.device)
        h = lm.activations(on_device)
        acts = read_batch(lm, on_device, h).feature_acts
        values, features = acts.topk(min(n_strongest, acts.shape[-1]), dim=-1)
        nll = lm.lazy_logits_from(on_device, h)[:, :-1].nll(on_device[:, 1:])
        nll = torch.nn.functional.pad(nll, (1, 0), value=torch.nan)
        parts.append(ReadTexts(batch, values.float().cpu(), features.cpu(), nll.float().cpu()))
    return ReadTexts(
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("tokens", "activations", "features", "nll"))
    )
