"""Find the directions of the SAE's error that tell forget text from near text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.errors import DataError
from mtsae_lens.progress import track
from mtsae_lens.splice.hooked_lm import HookedLM


def error_directions(
    lm: HookedLM, forget: TokenTable, near: Sequence[TokenTable]
) -> tuple[Float[Tensor, "d_in d_in"], Float[Tensor, " d_in"]]:
    """Rank the directions of the error `h - decode(e)` by how much more of it lies there on forget text than on near text.

    With c the mean error on near text, the directions are the eigenvectors of

        E[(error - c) (error - c)^T | forget] - E[(error - c) (error - c)^T | near]

    from the highest eigenvalue down (contrastive PCA, Abid et al. 2018, arXiv 1709.06716). The first term holds the difference of means as well
    as the variance on forget text. The first r rows are the basis of an `ErrorEdit` of rank r; all of them span the whole error.

    Args:
        lm: the model with its SAE.
        forget: forget text of SELECT.
        near: near text of SELECT; if there is none, far text. Each corpus has the same weight.

    Returns:
        An orthonormal basis, the most specific direction first, and the center c.

    Raises:
        DataError: there is no text to compare with.
    """
    if not near:
        raise DataError("expected near or far text to compare the error on forget text with, got none; give a retain corpus")
    texts = list(track((forget, *near), "reading the SAE's error", "text"))
    means, squares = zip(*(_moments(lm, table) for table in texts), strict=True)
    center = torch.stack(means[1:]).mean(dim=0)
    about = [square - _cross(mean, center) for mean, square in zip(means, squares, strict=True)]
    values, vectors = torch.linalg.eigh(about[0] - torch.stack(about[1:]).mean(dim=0))
    basis = vectors[:, values.argsort(descending=True)].T
    return basis.float().contiguous().to(lm.sae.device), center.float().to(lm.sae.device)


def _cross(mean: Float[Tensor, " d_in"], center: Float[Tensor, " d_in"]) -> Float[Tensor, "d_in d_in"]:
    """Return what turns second moments about 0 into those about the center."""
    return torch.outer(mean, center) + torch.outer(center, mean) - torch.outer(center, center)


@torch.no_grad()
def _moments(lm: HookedLM, table: TokenTable) -> tuple[Float[Tensor, " d_in"], Float[Tensor, "d_in d_in"]]:
    """Compute mean and second moments of the error over unmasked positions, on the CPU in double precision."""
    total, square, n_positions = torch.zeros(()), torch.zeros(()), 0
    for tokens in lm.batches(table):
        h = lm.activations(tokens)
        sae_state = lm.splice.sae_state(h, lm.feature_acts(tokens, h))
        error = (sae_state.target - sae_state.sae_out).flatten(2)[~lm.masked(tokens)].cpu().double()
        total, square, n_positions = total + error.sum(dim=0), square + error.T @ error, n_positions + len(error)
    return total / max(n_positions, 1), square / max(n_positions, 1)
