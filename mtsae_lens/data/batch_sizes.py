"""Choose how many contexts run in one batch when there are many numbers per token: a large vocabulary, or an SAE with many features."""

from __future__ import annotations

MAX_BYTES = 2**28  # for one float32 tensor (batch, pos, width); a forward pass holds several of them at once


def contexts_at_once(batch_size: int, n_positions: int, width: int, max_bytes: int = MAX_BYTES) -> int:
    """Halve a batch size until one float32 tensor `(batch, pos, width)` takes at most `max_bytes`.

    If `batch_size` is a power of two, the number of contexts still divides into whole batches.

    Args:
        batch_size: largest number of contexts in a batch.
        n_positions: tokens per context.
        width: numbers per token: the size of the vocabulary, or the number of features.
        max_bytes: limit for one float32 tensor `(batch, pos, width)`, in bytes.

    Returns:
        The number of contexts per batch, at least 1.
    """
    while batch_size > 1 and 4 * batch_size * n_positions * width > max_bytes:
        batch_size //= 2
    return batch_size
