"""Compute features from the residual stream, as the SAE's encoder does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

NORM_EPS = 1e-5


def keep_positive(hidden_pre: Tensor, config: dict[str, Any], weights: dict[str, Tensor]) -> Tensor:
    """Compute the features of a `relu` encoder from its pre-activations.

    Args:
        hidden_pre: pre-activations, `(batch, pos, d_sae)`.
        config: contents of `hook/config.json`.
        weights: the encoder's tensors.
    """
    return hidden_pre.relu()


def keep_largest(hidden_pre: Tensor, config: dict[str, Any], weights: dict[str, Tensor]) -> Tensor:
    """Compute the features of a `topk` encoder from its pre-activations.

    Args:
        hidden_pre: pre-activations, `(batch, pos, d_sae)`.
        config: contents of `hook/config.json`.
        weights: the encoder's tensors.
    """
    e, kept = hidden_pre.relu(), hidden_pre.topk(config["k"], dim=-1, sorted=False).indices
    return torch.zeros_like(e).scatter(-1, kept, e.gather(-1, kept))


def keep_above_threshold(hidden_pre: Tensor, config: dict[str, Any], weights: dict[str, Tensor]) -> Tensor:
    """Compute the features of a `jumprelu` encoder from its pre-activations.

    Args:
        hidden_pre: pre-activations, `(batch, pos, d_sae)`.
        config: contents of `hook/config.json`.
        weights: the encoder's tensors.
    """
    return hidden_pre.relu() * (hidden_pre > weights["threshold"])


ACTIVATIONS = {"relu": keep_positive, "topk": keep_largest, "jumprelu": keep_above_threshold}


def scale_vectors(x: Tensor, filters: Tensor, offsets: list[int]) -> Tensor:
    """Convolve every scale over the past; nothing is read at, across or before a wall.

    Args:
        x: the encoder's input, `(batch, pos, d_in)`, zero at walls.
        filters: weights of the taps, `(scale, offset, d_in)`.
        offsets: offsets of the taps; 0 comes first.

    Returns:
        One vector per scale and position, `(batch, pos, scale, d_in)`.
    """
    segments = (x == 0).all(dim=-1).long().cumsum(dim=-1)
    total = x.unsqueeze(-2) * filters[:, 0]
    for place, offset in enumerate(offsets[1:], start=1):
        if -offset < x.shape[1]:
            there = (segments[:, :offset] == segments[:, -offset:]).unsqueeze(-1)
            read = nn.functional.pad(x[:, :offset] * there, (0, 0, -offset, 0))
            total = total + read.unsqueeze(-2) * filters[:, place]
    return total


def encode(x: Tensor, past: Tensor, masked: Tensor, config: dict[str, Any], weights: dict[str, Tensor]) -> Tensor:
    """Compute the feature activations of new positions from all positions that the encoder reads.

    Args:
        x: the encoder's input at the new positions, `(batch, pos, d_in)`, zero where masked.
        past: its input at the positions before them.
        masked: mask `(batch, pos)` of the new positions that have no features.
        config: contents of `hook/config.json`.
        weights: the encoder's tensors.

    Returns:
        Feature activations, `(batch, pos, d_sae)`.
    """
    z = scale_vectors(torch.cat([past, x], dim=1), weights["filters"], config["offsets"])[:, past.shape[1] :]
    if config["scale_norm"] != "none":
        z = nn.functional.layer_norm(z, z.shape[-1:], eps=NORM_EPS)
    if config["scale_norm"] == "rescaled_layer_norm":
        mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True, correction=0)
        z = z * std.unsqueeze(-2) + mean.unsqueeze(-2)
    z = torch.cat([z[..., :1, :], config["context_gain"] * z[..., 1:, :]], dim=-2)
    encoder_in = z.flatten(2)
    if "W_context" in weights:  # the encoder reads the context through a narrow product
        encoder_in = torch.cat([z[..., 0, :], z[..., 1:, :].flatten(2) @ weights["W_context"]], dim=-1)
    hidden_pre = encoder_in @ weights["W_enc"] + weights["b_enc"]
    e = ACTIVATIONS[config["activation"]](hidden_pre, config, weights)
    return e.masked_fill(masked.unsqueeze(-1), 0.0)
