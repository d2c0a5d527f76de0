"""Massive activations: positions whose activations are many times as long as all others.

Many language models turn a few tokens (the first of a context, a first delimiter) into attention sinks, and give them activations that are
tens to hundreds of times as long as the others (Sun et al. 2024, arXiv 2402.17762). Squared error is then an error of these positions: in
SmolLM2-135M, 6 of 4,032 positions make up 97% of it. So training leaves them out of the loss, and evaluation reports the explained variance
with and without them.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MASSIVE = 10.0
"""A position counts as massive where the norm of its activations is more than this many times the median."""


def norm_limit(h: Float[Tensor, "row d_in"], multiple: float = MASSIVE) -> float:
    """Compute the norm above which a position counts as massive: `multiple * median(||h||)`.

    Args:
        h: activations of positions that are not masked. Rows of zeros do not count, or the limit would be 0 where most rows are zero.
        multiple: how many times the median.

    Returns:
        The limit; infinity where all rows are zero or there are no rows.
    """
    return _limit(h.norm(dim=-1), multiple)


def find_massive(
    h: Float[Tensor, "batch pos d_in"], masked: Bool[Tensor, "batch pos"], multiple: float = MASSIVE
) -> Bool[Tensor, "batch pos"]:
    """Return the massive positions of contexts. A masked position is not massive, and its norm does not count in the median.

    Args:
        h: activations of whole contexts.
        masked: the masked positions.
        multiple: as in `norm_limit`.
    """
    norms = h.norm(dim=-1)
    return (norms > _limit(norms[~masked], multiple)) & ~masked


def _limit(norms: Float[Tensor, " row"], multiple: float) -> float:
    norms = norms[norms > 0]
    return multiple * norms.median().item() if len(norms) else torch.inf


def massive_positions(h: Float[Tensor, "*row d_in"], limit: float) -> Bool[Tensor, "*row"]:
    """Return the positions whose norm is above the limit."""
    return h.norm(dim=-1) > limit
