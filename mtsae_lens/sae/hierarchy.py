"""A hierarchy of scales: features in groups, nested as in Matryoshka SAEs (Bussmann et al. 2025, arXiv 2503.17547).

Of K groups, group g reads the scales 0 to g: the first the shortest scale alone, the last all. The reconstruction loss is averaged
over the prefixes of groups, so what short scales can explain is explained by features that read nothing longer, and a feature's
group says how long a context it needs.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def group_sizes(d_sae: int, n_groups: int) -> list[int]:
    """As equal as can be, the first ones larger."""
    return [d_sae // n_groups + (group < d_sae % n_groups) for group in range(n_groups)]


def feature_groups(d_sae: int, n_groups: int) -> Tensor:
    """The group of every feature, `(d_sae,)`."""
    return torch.arange(n_groups).repeat_interleave(torch.tensor(group_sizes(d_sae, n_groups)))


def readable(d_sae: int, n_scales: int) -> Bool[Tensor, "n_scales d_sae"]:
    """Which scales each feature may read: group g the scales 0 to g."""
    return torch.arange(n_scales)[:, None] <= feature_groups(d_sae, n_scales)[None, :]


def nested_reconstructions(
    feature_acts: Float[Tensor, "row d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    b_dec: Float[Tensor, " d_in"],
    n_groups: int,
) -> Float[Tensor, "n_groups row d_in"]:
    """What the groups 0 to g reconstruct together, for every g; the last is the full reconstruction."""
    sizes = group_sizes(W_dec.shape[0], n_groups)
    parts = [acts @ rows for acts, rows in zip(feature_acts.split(sizes, dim=-1), W_dec.split(sizes), strict=True)]
    return torch.stack(parts).cumsum(dim=0) + b_dec
