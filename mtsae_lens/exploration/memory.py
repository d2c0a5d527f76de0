"""Measure how much of an output the memory of a decoder carries over."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.sae.memory import run_decoder
from mtsae_lens.sae.temporal_encoder import TemporalEncoder
from mtsae_lens.splice.hooked_lm import HookedLM


@torch.no_grad()
def measure_carried_variance(lm: HookedLM, tables: Iterable[TokenTable]) -> float | None:
    """Measure the share of the variance of the reconstruction that the prediction from past reconstructions explains.

        1 - sum_t ||r_t - p_t||^2 / sum_t ||r_t - mean(r)||^2

    Args:
        lm: model and SAE.
        tables: contexts; positions without an active feature are left out.

    Returns:
        The share; None if the decoder has no memory, or if nothing varies.
    """
    if not isinstance(lm.sae, TemporalEncoder) or not lm.sae.has_memory:
        return None
    whole, new = [], []
    for table in tables:
        for tokens in lm.batches(table):
            feature_acts = lm.feature_acts(tokens)
            active = (feature_acts != 0).any(dim=-1)
            whole.append(run_decoder(lm.sae, feature_acts)[active])
            new.append((feature_acts @ lm.sae.W_dec)[active])
    r, coded = torch.cat(whole).double(), torch.cat(new).double()
    variance = (r - r.mean(dim=0)).pow(2).sum() if len(r) else torch.zeros(())
    return float(1 - coded.pow(2).sum() / variance) if variance > 0 else None
