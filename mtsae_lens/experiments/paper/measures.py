"""Measure SAEs on stored held-out activations, which is much faster than through the language model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from sae_lens import TrainingSAE
from torch import Tensor

from mtsae_lens.evaluation.recovery import explained_variance
from mtsae_lens.experiments.paper.results import Metrics
from mtsae_lens.sae.temporal_encoder import TemporalEncoder

METRIC_TITLES = {
    "l2_loss": "L2 loss",
    "explained_variance": "explained variance",
    "l0": "L0",
    "l1": "L1",
    "kl_div_score": "kl_div_score",
    "ce_loss_score": "ce_loss_score",
    "relative_reconstruction_bias": "relative reconstruction bias",
    "dead_features": "dead features",
    "future_leak": "future leak",
    "scale_cosine": "cosine of scales, after",
    "scale_cosine_untrained": "cosine of scales, before",
}
"""Names of the metrics in tables and figures."""

_CONTEXTS_AT_ONCE = 32


def mean_scale_cosine(z: Float[Tensor, "row n_scales d_in"]) -> float:
    """Compute the mean cosine of two different scales, with its sign: 1 if all scales are equal.

    Args:
        z: vectors of the scales.
    """
    directions = torch.nn.functional.normalize(z, dim=-1)
    n_scales = z.shape[-2]
    total = directions.sum(dim=-2).pow(2).sum(dim=-1).mean()  # ||sum_k u_k||^2 = K + sum over pairs of different scales
    return float((total - n_scales) / max(1, n_scales * (n_scales - 1)))


def finite(metrics: Mapping[str, float]) -> Metrics:
    """Replace values that are not finite, such as 0 / 0, by None, because JSON has no NaN.

    Args:
        metrics: values by name.
    """
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


@torch.no_grad()
def row_metrics(sae: TrainingSAE[Any], h: Float[Tensor, "n pos d_in"], masked: Bool[Tensor, "n pos"]) -> Metrics:
    """Measure fidelity on whole contexts, at positions that are not masked.

    Args:
        sae: the SAE.
        h: activations, zero at masked positions, which the SAE reads as walls.
        masked: the masked positions.

    Returns:
        `explained_variance` (centered), `l2_loss` (mean `||h - h'||`, as in the paper), `l0`, `l1` (per token), `dead_features`
        (features that fire on none of these tokens), and for a temporal SAE `scale_cosine`.
    """
    outputs, acts, scales, kept = [], [], [], []
    for batch, left_out in zip(h.split(_CONTEXTS_AT_ONCE), masked.split(_CONTEXTS_AT_ONCE), strict=True):
        keep = ~left_out.to(batch.device)
        e = sae.encode(batch)
        kept.append(batch[keep])
        acts.append(e[keep])
        outputs.append(sae.decode(e)[keep])
        if isinstance(sae, TemporalEncoder):
            scales.append(sae.encode_scales(*sae.read_contexts(batch))[keep])
    x, e, out = torch.cat(kept), torch.cat(acts), torch.cat(outputs)
    metrics = {
        "explained_variance": explained_variance(x, out),
        "l2_loss": float((x - out).norm(dim=-1).mean()),
        "l0": float((e != 0).sum(dim=-1).float().mean()),
        "l1": float(e.abs().sum(dim=-1).mean()),
        "dead_features": float((e == 0).all(dim=0).sum()),
    }
    if scales:
        metrics["scale_cosine"] = mean_scale_cosine(torch.cat(scales))
    return finite(metrics)
