"""Nested groups of features, as in Matryoshka SAEs (Bussmann et al. 2025, arXiv 2503.17547).

The reconstruction loss is averaged over the prefixes of groups, so the features of the first groups explain as much as they can. There are two
ways to make groups:

- `matryoshka_widths`: the number of features in each prefix. The groups differ in nothing else.
- `hierarchy="nested"`: one group for each scale. Group g reads the scales 0 to g: the first group only the first scale, the last group all
  scales. The group of a feature tells how much context it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mtsae_lens.sae.entries import Entries
from mtsae_lens.sae.sparse import decode_entries


def group_sizes(d_sae: int, n_groups: int) -> list[int]:
    """Split features into groups of equal size; if the division leaves a remainder, the first groups have one feature more.

    Args:
        d_sae: number of features.
        n_groups: number of groups.

    Returns:
        The size of every group.
    """
    return [d_sae // n_groups + (group < d_sae % n_groups) for group in range(n_groups)]


def prefix_group_sizes(cfg: Any) -> list[int]:
    """Return the sizes of the groups over whose prefixes the reconstruction loss is averaged; one group is a plain SAE.

    Args:
        cfg: the configuration of an MTSAE in training.

    Returns:
        Sizes that sum to `d_sae`.
    """
    if cfg.hierarchy == "nested":
        return group_sizes(cfg.d_sae, len(cfg.dilations))
    ends = [width for width in cfg.matryoshka_widths if width < cfg.d_sae]
    return [end - start for start, end in pairwise([0, *ends, cfg.d_sae])]


def feature_groups(d_sae: int, n_groups: int) -> Tensor:
    """Return the group of every feature.

    Args:
        d_sae: number of features.
        n_groups: number of groups.

    Returns:
        Indices of groups, `(d_sae,)`.
    """
    return torch.arange(n_groups).repeat_interleave(torch.tensor(group_sizes(d_sae, n_groups)))


def readable(d_sae: int, n_scales: int) -> Bool[Tensor, "n_scales d_sae"]:
    """Return which scales each feature may read: features of group g read the scales 0 to g.

    Args:
        d_sae: number of features.
        n_scales: number of scales, and of groups.

    Returns:
        A mask `(n_scales, d_sae)`.
    """
    return torch.arange(n_scales)[:, None] <= feature_groups(d_sae, n_scales)[None, :]


def nested_reconstructions(
    feature_acts: Float[Tensor, "row d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    b_dec: Float[Tensor, " d_in"],
    sizes: Sequence[int],
) -> Float[Tensor, "n_groups row d_in"]:
    """Reconstruct from the groups 0 to g together, for every g.

    Args:
        feature_acts: feature activations, `(row, d_sae)`.
        W_dec: decoder, `(d_sae, d_in)`.
        b_dec: bias of the decoder, `(d_in,)`.
        sizes: the size of every group.

    Returns:
        Reconstructions `(n_groups, row, d_in)`; the last is the full one.
    """
    groups = zip(feature_acts.split(list(sizes), dim=-1), W_dec.split(list(sizes)), strict=True)
    return torch.stack([acts @ rows for acts, rows in groups]).cumsum(dim=0) + b_dec


def decode_prefixes(
    values: Float[Tensor, " entry"],
    entries: Entries,
    W_dec: Float[Tensor, "d_sae d_in"],
    b_dec: Float[Tensor, " d_in"],
    sizes: Sequence[int],
) -> Float[Tensor, "n_groups row d_in"]:
    """Compute what `nested_reconstructions` does from the active features alone; one group is a plain reconstruction.

    Args:
        values: feature activations of the entries.
        entries: where they stand.
        W_dec: decoder, `(d_sae, d_in)`.
        b_dec: bias of the decoder, `(d_in,)`.
        sizes: the size of every group.

    Returns:
        Reconstructions `(n_groups, row, d_in)`.
    """
    if len(sizes) == 1:
        return decode_entries(values, entries, W_dec)[None] + b_dec
    group = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(values.device)
    parts = decode_entries(values, entries, W_dec, group, len(sizes))
    return parts.unflatten(0, (len(sizes), entries.shape[0])).cumsum(dim=0) + b_dec
