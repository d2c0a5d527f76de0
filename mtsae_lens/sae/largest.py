"""Find the largest values of a matrix of pre-activations, which `torch.topk` does slowly on a CPU."""

from __future__ import annotations

from math import isqrt

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mtsae_lens.sae.large_tensors import make_zeros

_SAMPLE = 262_144  # values, from which the bound is estimated: sorting them takes a few milliseconds


def largest_of_rows(values: Float[Tensor, "*row d_sae"], k: int) -> Int[Tensor, "*row k"]:
    """Return the places of the `k` largest values of each row.

    The values of a row are put into groups. All of the `k` largest are in the `k` groups with the largest maxima: a group that holds one and
    is not among these would have `k` groups above it, each with a value that is at least as large. So with groups of s values two short
    lists are sorted, of `d_sae / s` and of `k s` values, instead of a long one. On a GPU, where nothing was measured, it is `torch.topk`.

    Args:
        values: the matrix, `(..., d_sae)`.
        k: how many values of each row to take.

    Returns:
        Their places in the row, ascending. A NaN counts as the largest value.
    """
    d_sae = values.shape[-1]
    size = max(size for size in range(1, max(1, isqrt(d_sae // k)) + 1) if d_sae % size == 0)
    if size == 1 or values.device.type != "cpu":
        return _choose(values, k)
    n_groups = d_sae // size  # group g holds the places g, g + n_groups, g + 2 n_groups, ...
    groups = _choose(values.detach().unflatten(-1, (size, n_groups)).amax(dim=-2), k)
    places = (groups.unsqueeze(-2) + n_groups * torch.arange(size, device=values.device).unsqueeze(-1)).flatten(-2)  # ascending
    return places.gather(-1, _choose(values.detach().gather(-1, places), k))


def _choose(values: Float[Tensor, "*row n"], k: int) -> Int[Tensor, "*row k"]:
    """Return the places of the `k` largest values of each row, ascending; by numpy on a CPU: it takes a quarter of the time.

    The k-th largest value is found faster than the places of the k largest, and these are the places of the values that are not smaller. In a
    row with ties they may be more than k, and in a row with a NaN fewer.
    """
    if values.device.type != "cpu" or values.dtype not in (torch.float32, torch.float64) or torch.compiler.is_compiling():
        return values.topk(k, dim=-1, sorted=False).indices.sort(dim=-1).values
    array = values.detach().reshape(-1, values.shape[-1]).numpy()
    largest = array >= np.partition(array, -k, axis=-1)[:, -k, None]
    unclear = np.count_nonzero(largest, axis=-1) != k
    if unclear.any():
        rest = np.zeros_like(largest[unclear])
        np.put_along_axis(rest, np.argpartition(array[unclear], -k, axis=-1)[:, -k:], True, axis=-1)
        largest[unclear] = rest
    return torch.from_numpy(np.flatnonzero(largest) % array.shape[-1]).view(*values.shape[:-1], k)


def keep_largest(values: Float[Tensor, "*row d_sae"], k: int) -> Float[Tensor, "*row d_sae"]:
    """Keep the `k` largest values of each row, those of them that are positive, and set the others to zero."""
    places = largest_of_rows(values, k)
    return make_zeros(values.shape, values).scatter_(-1, places, values.gather(-1, places).relu())


def largest_entries(values: Float[Tensor, "row d_sae"], n: int) -> Int[Tensor, " entry"]:
    """Return the places, in the flattened matrix, of the `n` largest of the positive values; of all of them, if there are fewer.

    `torch.topk` would partly sort all values. The values above a bound that a sample of them suggests are few, and if there are at least `n`
    of them, the `n` largest are among them.

    Args:
        values: the matrix.
        n: how many entries to take.

    Returns:
        Their places, in any order.
    """
    flat = values.flatten()
    sample = flat[:: max(1, len(flat) // _SAMPLE)]
    expected = n * len(sample) / len(flat)
    n_above = min(len(sample), int(1.5 * expected + 10 * expected**0.5) + 10)  # far above what chance can take away
    bound = sample.topk(n_above).values[-1].clamp(min=0)
    candidates = (~(flat <= bound)).nonzero().squeeze(1)  # a NaN must not vanish
    if len(candidates) < n:
        candidates = (~(flat <= 0)).nonzero().squeeze(1)
    if len(candidates) <= n:
        return candidates
    return candidates[flat[candidates].topk(n, sorted=False).indices]
