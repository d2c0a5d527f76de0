"""Train an SAE with memory on rows that can be mixed: its past reconstructions are estimated by the activations less errors.

In use, the prediction reads reconstructions, which need those before them. In training, what a position reads of its past is an estimate: the
activations there, less an error of reconstruction that the step before left at another position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from mtsae_lens.sae.memory import read_past
from mtsae_lens.sae.temporal import find_walls

N_ERRORS = 512
"""Errors of reconstruction that an SAE in training keeps, in `recent_errors`."""


@dataclass(frozen=True, eq=False)
class MemoryBatch:
    """What a training batch says of each position and of its past."""

    h: Float[Tensor, "row d_in"]
    """The activations."""
    x: Float[Tensor, "row d_in"]
    """The same, centered, zero at walls."""
    walls: Bool[Tensor, " row"]
    """The positions that are walls."""
    past: Float[Tensor, "row read d_in"]
    """The activations before each position, about the mean, as `read_past` reads them."""
    weights: Float[Tensor, "row read"]
    """The weight of each read (`gather_past`)."""


def read_memory_batch(sae: Any, batch: Tensor) -> MemoryBatch:
    """Read a training batch of an SAE with memory.

    Args:
        sae: the SAE in training.
        batch: rows from `gather_past`, or whole contexts.

    Returns:
        The positions and their past.
    """
    cfg, center = sae.cfg, sae.b_dec * sae.cfg.apply_b_dec_to_input
    n_reads, d_in = cfg.n_memory_reads, cfg.d_in
    if batch.ndim == 2 and batch.shape[-1] == (1 + n_reads) * d_in + n_reads + 1:
        h, read, weights, scale = batch.to(sae.dtype).split([d_in, n_reads * d_in, n_reads, 1], dim=-1)
        weights, walls = weights / scale, find_walls(h)  # the weights were scaled with the activations
        x = (h - center).masked_fill(walls.unsqueeze(-1), 0.0)
        past = rearrange(read, "row (read d_in) -> row read d_in", d_in=d_in) - weights.unsqueeze(-1) * sae.b_dec
        return MemoryBatch(h, x, walls, past, weights)
    x, walls = sae.read_contexts(batch)
    r = x - sae.b_dec * (not cfg.apply_b_dec_to_input)
    reads = [read_past(of, ~walls, cfg.memory_lags, cfg.memory_decays).flatten(0, 1) for of in (r, torch.ones_like(r[..., :1]))]
    past = rearrange(reads[0], "row (read d_in) -> row read d_in", d_in=d_in)
    return MemoryBatch(batch.flatten(0, -2), x.flatten(0, 1), walls.flatten(), past, reads[1])


def predict_batch(sae: Any, read: MemoryBatch, step: int) -> Float[Tensor, "row d_in"]:
    """Predict each position from an estimate of its past reconstructions.

    Args:
        sae: the SAE in training.
        read: the batch.
        step: number of the training step, the seed of the errors.

    Returns:
        The predictions, about the mean, zero at walls.
    """
    past = read.past.detach() - draw_errors(sae, read.weights, step)
    return sae.predict(past.flatten(1)).masked_fill(read.walls.unsqueeze(-1), 0.0)


@torch.no_grad()
def draw_errors(sae: Any, weights: Float[Tensor, "row read"], step: int) -> Float[Tensor, "row read d_in"]:
    """Draw one of the recent errors for everything that is read; for a running average it is smaller, because errors average out.

    Args:
        sae: the SAE in training.
        weights: the weight of each read; where it is 0 there is no error.
        step: number of the training step, the seed.
    """
    generator = torch.Generator().manual_seed(step)
    drawn = torch.randint(len(sae.recent_errors), weights.shape, generator=generator).to(weights.device)
    averaged = [((1 - b) / (1 + b)) ** 0.5 for b in sae.cfg.memory_decays]
    size = torch.tensor([1.0] * len(sae.cfg.memory_lags) + averaged, device=weights.device, dtype=sae.dtype)
    return sae.recent_errors[drawn] * ((weights > 0) * size).unsqueeze(-1)


@torch.no_grad()
def remember_errors(sae: Any, errors: Float[Tensor, "row d_in"]) -> None:
    """Keep some errors of reconstruction for the next step.

    Args:
        sae: the SAE in training.
        errors: the errors of this step.
    """
    if len(errors):
        sae.recent_errors.copy_(errors[torch.arange(len(sae.recent_errors), device=errors.device) % len(errors)])


@torch.no_grad()
def predicted_share(left: Float[Tensor, "row d_in"], predicted: Float[Tensor, "row d_in"]) -> Float[Tensor, ""]:
    """Compute the share of the sum of squares that the prediction takes away.

    Args:
        left: what is left of each position, about the mean.
        predicted: the prediction that was subtracted.
    """
    total = (left + predicted).pow(2).sum()
    return 1 - left.pow(2).sum() / total.clamp(min=1e-12)
