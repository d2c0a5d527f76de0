"""How many contexts are run together where a row of numbers per token is long: a large vocabulary, or an SAE of many features."""

from __future__ import annotations

MAX_BYTES = 2**28  # of one float32 tensor (batch, pos, width); a pass holds several of them at once


def contexts_at_once(batch_size: int, n_positions: int, width: int, max_bytes: int = MAX_BYTES) -> int:
    """The batch size asked for, halved until one tensor of a batch takes no more than so many bytes.

    Halving keeps the number of contexts in whole batches where the batch size asked for is a power of two.

    Args:
        batch_size: contexts asked for.
        n_positions: tokens in a context.
        width: numbers per token: the vocabulary, or the features of an SAE.
        max_bytes: of a float32 tensor `(batch, pos, width)`.

    Returns:
        At least one context.
    """
    while batch_size > 1 and 4 * batch_size * n_positions * width > max_bytes:
        batch_size //= 2
    return batch_size
