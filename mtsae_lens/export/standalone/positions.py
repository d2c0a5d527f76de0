"""Find the positions that are not padding, and check that a text fits into the model's context."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def visible_positions(attention: Any, n_past: int, n_new: int) -> Tensor | None:
    """Return the positions that are not padding, from any attention mask of transformers.

    Args:
        attention: a mask `(batch, pos)` or `(batch, head, query, key)`, or a dictionary of masks; None for no mask.
        n_past: positions in the KV cache.
        n_new: new positions.

    Returns:
        A mask `(batch, n_past + n_new)`; None if there is no mask.

    Raises:
        ValueError: the mask has another shape.
    """
    if isinstance(attention, dict):
        attention = next((mask for mask in attention.values() if mask is not None), None)
    if not isinstance(attention, Tensor):
        return None
    n_positions = n_past + n_new
    if attention.ndim == 4:  # (batch, head, query, key): a position is read if any query reads it
        allowed = attention > torch.finfo(attention.dtype).min / 2 if attention.is_floating_point() else attention.bool()
        allowed = allowed[:, 0, :, :n_positions]
        places = torch.arange(n_positions, device=allowed.device)
        reads_ahead = (allowed & (places > places[n_past:, None])).any(
            dim=-1, keepdim=True
        )  # padding may read ahead, because it has nothing else to read
        attention = (allowed & ~reads_ahead).any(dim=1)
    if attention.ndim != 2:
        raise ValueError(f"expected an attention_mask (batch, pos), got shape {tuple(attention.shape)}; give one of that shape")
    return attention[:, :n_positions].long()


def check_length(model: nn.Module, n_positions: int, attention: Tensor | None) -> None:
    """Check that a text fits into the model's context.

    Args:
        model: a Hugging Face model.
        n_positions: positions of the text.
        attention: mask of the positions that are not padding; None for no padding.

    Raises:
        ValueError: the text is too long.
    """
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is None or n_positions <= longest:
        return
    n_read = n_positions if attention is None else int(attention.sum(dim=-1).max())
    if n_read > longest:
        raise ValueError(
            f"expected at most {longest} positions, the model's context, got {n_read}; give a shorter prompt or fewer new tokens"
        )
