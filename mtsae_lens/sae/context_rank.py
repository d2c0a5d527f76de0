"""How the vectors of the scales enter the encoder: side by side, or with `context_rank` the context through a narrow product.

encoder_in = [z_1; ...; z_K],                       W_enc (n_scales * d_in, d_sae)
encoder_in = [z_1; [z_2; ...; z_K] @ W_context],    W_enc (d_in + context_rank, d_sae)         with `context_rank`
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


def join_scales(
    z: Float[Tensor, "*row n_scales d_in"], W_context: Float[Tensor, "context_d_in rank"] | None
) -> Float[Tensor, "*row encoder_d_in"]:
    """Compute the input of the encoder.

    Args:
        z: the vector of every scale, `(..., n_scales, d_in)`.
        W_context: the projection of all scales but the first; None for full rank.

    Returns:
        What `W_enc` multiplies.
    """
    if W_context is None:
        return rearrange(z, "... scale d_in -> ... (scale d_in)")
    context = rearrange(z[..., 1:, :], "... scale d_in -> ... (scale d_in)") @ W_context
    return torch.cat([z[..., 0, :], context], dim=-1)


def split_encoder(
    W_enc: Float[Tensor, "encoder_d_in feature"], W_context: Float[Tensor, "context_d_in rank"] | None, d_in: int
) -> Float[Tensor, "n_scales d_in feature"]:
    """Split the encoder into one matrix for each scale; the product with `W_context` is written out.

    Args:
        W_enc: the encoder, or the columns of some features.
        W_context: as in `join_scales`.
        d_in: width of the activations.

    Returns:
        Weights `(n_scales, d_in, feature)`.
    """
    if W_context is not None:
        W_enc = torch.cat([W_enc[:d_in], W_context @ W_enc[d_in:]])
    return rearrange(W_enc, "(scale d_in) feature -> scale d_in feature", d_in=d_in)


@torch.no_grad()
def encoder_norms(
    W_enc: Float[Tensor, "encoder_d_in d_sae"], W_context: Float[Tensor, "context_d_in rank"] | None, d_in: int
) -> list[Tensor]:
    """Compute the norm of the encoder weights of each scale; that of a product `U V` is `sqrt(sum(U'U * V V'))`.

    Args:
        W_enc: the encoder.
        W_context: as in `join_scales`.
        d_in: width of the activations.

    Returns:
        One scalar for each scale.
    """
    if W_context is None:
        return [part.norm() for part in W_enc.split(d_in)]
    own, V = W_enc[:d_in], W_enc[d_in:]
    gram = V @ V.T
    return [own.norm(), *((U.T @ U * gram).sum().clamp(min=0).sqrt() for U in W_context.split(d_in))]
