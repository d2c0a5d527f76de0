"""Define separation losses, which keep the scales apart: 0 if scales share nothing, 1 if they are equal, and 0 for a single scale.

A loss is a function of `Scales`. `register_separation` adds one under a name that `MTTrainingSAEConfig.separation` then knows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mtsae_lens.errors import ConfigError

_EPS = 1e-8  # a scale that reads nothing has neither direction nor variance


@dataclass(frozen=True, eq=False)
class Scales:
    """The arguments of a separation loss."""

    z: Float[Tensor, "row n_scales d_in"]
    """The normalized vector of every scale, at positions that are not walls."""

    filters: Float[Tensor, "n_scales n_reads d_in"]
    """The filter of every scale over the offsets that the encoder reads."""


SeparationLoss = Callable[[Scales], Tensor]
SEPARATIONS: dict[str, SeparationLoss] = {}


def register_separation(name: str) -> Callable[[SeparationLoss], SeparationLoss]:
    """Make a loss known under a name; a decorator of a function.

    Args:
        name: the value of `MTTrainingSAEConfig.separation`.

    Returns:
        A function that registers a loss and returns it.

    Raises:
        ConfigError: another loss has this name.
    """

    def register(loss: SeparationLoss) -> SeparationLoss:
        known = SEPARATIONS.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (loss.__module__, loss.__qualname__):
            raise ConfigError(
                f"expected a new name for a separation loss, got {name!r}, which {known.__module__}.{known.__qualname__} has; give another "
                "name"
            )
        SEPARATIONS[name] = loss
        return loss

    return register


def _off_diagonal(pairs: Float[Tensor, "*some n_scales n_scales"]) -> Tensor:
    """Return the entries of pairs of different scales."""
    different = ~torch.eye(pairs.shape[-1], dtype=torch.bool, device=pairs.device)
    return pairs[..., different]


@register_separation("cosine")
def cosine_separation(scales: Scales) -> Float[Tensor, ""]:
    """Compute `1 / (K (K - 1)) * sum_{i != j} max(0, cos(z_i, z_j))`, averaged over positions (eq. 4 of the paper).

    Args:
        scales: vectors and filters of the scales.
    """
    directions = torch.nn.functional.normalize(scales.z, dim=-1)
    return _off_diagonal(torch.einsum("rid,rjd->rij", directions, directions)).clamp(min=0).mean()


@register_separation("decorrelation")
def decorrelation(scales: Scales) -> Float[Tensor, ""]:
    """Compute the squared correlation, over positions, of two scales in the same dimension, averaged over pairs and dimensions.

    This is the off-diagonal term of DeCov (Cogswell et al. 2016, arXiv 1511.06068) and Barlow Twins (Zbontar et al. 2021, arXiv
    2103.03230), taken between scales instead of dimensions: no scale should repeat what another says about a dimension.

    Args:
        scales: vectors and filters of the scales.
    """
    centered = scales.z - scales.z.mean(dim=0)
    standard = centered / (centered.pow(2).mean(dim=0) + _EPS).sqrt()
    correlations = torch.einsum("rid,rjd->dij", standard, standard) / len(standard)
    return _off_diagonal(correlations).pow(2).mean()


@register_separation("cka")
def centered_kernel_alignment(scales: Scales) -> Float[Tensor, ""]:
    """Compute the linear CKA of two scales, `|Z_i' Z_j|_F^2 / (|Z_i' Z_i|_F |Z_j' Z_j|_F)`, averaged over pairs (Kornblith et al.
    2019, arXiv 1905.00414).

    CKA sees any linear dependence, also between different dimensions, which the other losses do not. This estimate is biased: for `n`
    positions of independent scales it is about `d_in / (n + d_in)`, not 0.

    Args:
        scales: vectors and filters of the scales.
    """
    centered = scales.z - scales.z.mean(dim=0)
    squared = torch.einsum("rid,rje->ijde", centered, centered).pow(2).sum(dim=(-2, -1))
    norms = squared.diagonal().clamp(min=_EPS).sqrt()
    return _off_diagonal(squared / (norms[:, None] * norms[None, :])).mean()


@register_separation("taps")
def tap_orthogonality(scales: Scales) -> Float[Tensor, ""]:
    """Compute the squared cosine of the filters of two scales over the offsets, averaged over pairs and dimensions.

    This is the soft orthogonality of Bansal et al. 2018 (arXiv 1810.09102), applied to the temporal filters: it depends on no data.

    Args:
        scales: vectors and filters of the scales.
    """
    directions = torch.nn.functional.normalize(scales.filters, dim=1)
    return _off_diagonal(torch.einsum("ird,jrd->dij", directions, directions)).pow(2).mean()


def separation_loss(
    name: str,
    z: Float[Tensor, "*row n_scales d_in"],
    filters: Float[Tensor, "n_scales n_reads d_in"],
    keep: Bool[Tensor, "*row"],
) -> Float[Tensor, ""]:
    """Compute a separation loss over some positions.

    Args:
        name: the name of the loss.
        z: the normalized vector of every scale, `(..., n_scales, d_in)`.
        filters: the filter of every scale, `(n_scales, n_reads, d_in)`.
        keep: mask of the positions that are counted, `(...)`.

    Returns:
        The loss, a scalar; 0 for a single scale or no position.
    """
    if z.shape[-2] == 1 or not keep.any():
        return z.new_zeros(())
    return SEPARATIONS[name](Scales(z[keep], filters))
