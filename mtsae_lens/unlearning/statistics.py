"""How often and how strongly every feature fires on a corpus, in one pass and memory of order d_sae."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mtsae_lens.data.contexts import TokenTable
from mtsae_lens.splice.hooked_lm import HookedLM


@dataclass(frozen=True)
class FiringStatistics:
    """Of every feature, on one corpus, special tokens left out."""

    corpus: str
    rate: Float[Tensor, " d_sae"]  # share of tokens at which it fires
    mean_activation: Float[Tensor, " d_sae"]  # over the tokens at which it fires; 0 if none
    n_tokens: int


def firing_statistics(lm: HookedLM, table: TokenTable) -> FiringStatistics:
    """One pass over a corpus."""
    fired = total = torch.zeros(lm.sae.cfg.d_sae, device=lm.sae.device)
    n_tokens = 0
    for tokens in lm.batches(table):
        feature_acts = lm.feature_acts(tokens)[~lm.masked(tokens)]
        fired = fired + (feature_acts > 0).sum(dim=0)
        total = total + feature_acts.clamp(min=0).sum(dim=0)
        n_tokens += feature_acts.shape[0]
    return FiringStatistics(table.corpus, fired / max(n_tokens, 1), total / fired.clamp(min=1), n_tokens)
