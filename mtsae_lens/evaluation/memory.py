"""How much the memory of an SAE carries over (`mtsae_lens.sae.memory`), and what is left without it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mtsae_lens.data.masks import zero_rows
from mtsae_lens.data.massive import massive_positions, norm_limit
from mtsae_lens.evaluation.massive import ExplainedVariance
from mtsae_lens.sae.memory import run_decoder, run_encoder
from mtsae_lens.sae.temporal_encoder import TemporalEncoder

MEMORY_MEANINGS: dict[str, str] = {
    "predicted_variance": "explained variance of the prediction alone, before any feature of the position is read",
    "explained_variance_without_prediction": "explained variance of the same features if the decoder did not predict",
    "explained_variance_with_another_past": "explained variance if every context is given the past of another one at the same positions",
    "carried_variance": "share of the variance of the reconstruction that the prediction explains: how much of an output is carried over",
    "prediction_parameters": "weights of the prediction, beside those of encoder and decoder",
}


@torch.no_grad()
def measure_memory(
    sae: TemporalEncoder, batches: Iterable[tuple[Float[Tensor, "batch pos *heads d_in"], Bool[Tensor, "batch pos"]]]
) -> dict[str, float]:
    """Measure the parts of an SAE with memory, over the positions that are not massive.

    Args:
        sae: the SAE.
        batches: activations at its hook, and which positions count. The first batch sets the norm above which a position is massive.

    Returns:
        The numbers that `MEMORY_MEANINGS` names; that with another past is NaN if every batch has one context.
    """
    sums = {name: ExplainedVariance() for name in list(MEMORY_MEANINGS)[:-1]}
    limit = torch.inf
    for number, (h, counted) in enumerate(batches):
        rows = h.flatten(2)
        limit = norm_limit(rows[counted]) if number == 0 else limit
        x, walls = sae.read_contexts(zero_rows(h, ~counted))
        kept = counted & ~walls & ~massive_positions(rows, limit)
        own = x[kept] - sae.b_dec * (not sae.cfg.apply_b_dec_to_input)
        difference = run_encoder(sae, x, walls)
        coded = (sae.encode_token(difference, walls) @ sae.W_dec)[kept]
        sums["predicted_variance"].add(own, (x - difference)[kept])
        sums["carried_variance"].add((x - difference)[kept] + coded, (x - difference)[kept])
        sums["explained_variance_without_prediction"].add(own, coded)
        if len(x) > 1:  # a lone context has no other
            elsewhere = sae.encode_token(run_encoder(sae, x, walls, of_another=True), walls)
            sums["explained_variance_with_another_past"].add(own, run_decoder(sae, elsewhere, of_another=True)[kept])
    found = {name: explained.value for name, explained in sums.items()}
    return found | {"prediction_parameters": float(sae.W_memory_in.numel() + sae.W_memory_out.numel())}
