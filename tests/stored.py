"""Contexts in memory whose position 0 is masked, as that of a BOS token is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtsae_lens.data.blocks import StoredBlocks


def position_0(h: Tensor) -> Tensor:
    """A mask of contexts that is True at position 0."""
    masked = torch.zeros(h.shape[:2], dtype=torch.bool)
    masked[:, 0] = True
    return masked


def stored(h: Tensor, batch_size_sequences: int, block_size_batches: int = 16, **settings: Any) -> StoredBlocks:
    return StoredBlocks(h, batch_size_sequences, block_size_batches, masked=position_0(h), **settings)
