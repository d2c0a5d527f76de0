"""Unlearn by gradients from which the top principal components are removed, after RepSelect."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.precision import in_float32
from mtsae_lens.errors import ConfigError
from mtsae_lens.unlearning.finetuning.loss_interface import Step
from mtsae_lens.unlearning.finetuning.losses import NPO, mean_nll


@dataclass(frozen=True)
class RepSelect:
    """NPO on forget text, with gradients that lack the top principal components (after RepSelect, Sondej et al. 2026, arXiv 2606.17168).

        G' = (1 - U U^T) G (1 - V V^T),    W -> W - lr * G' / rms(G')

    for every matrix of the MLPs. G is the gradient of NPO without a retain term. U and V hold the first left and right singular vectors of
    the gradient that the components are estimated from (`source`). They are estimated again in every step, from the batch of this step.
    rms is the root mean square over the entries of all trained matrices.

    Followed from the paper: only the matrices of the MLPs are trained, the components are removed on the input side and on the output side
    before each update, and plain gradient descent follows gradients of a fixed length, with an NPO loss and no retain loss.
    Not followed: the paper divides components by their singular values (the complete removal here is one of its variants); it estimates
    them over an epoch, also from activations and output gradients; and before each update, a LoRA adversary relearns the forget text.
    """

    share: float = 0.25
    """Share of the principal components of each matrix that is removed, rounded up. At least one component is kept."""
    source: Literal["forget", "retain"] = "forget"
    """Estimate the components from the gradient of this loss on forget text (the default of the paper), or of the NLL of retain text."""
    beta: float = 0.1
    """The `beta` of NPO."""

    negates = False

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError(f"expected share between 0 and 1, got {self.share}; change it")
        if self.source not in ("forget", "retain"):
            raise ConfigError(f"expected source forget or retain, got {self.source!r}; change it")
        NPO(self.beta)

    @property
    def uses_retain(self) -> bool:
        """Return whether the components are estimated from retain text."""
        return self.source == "retain"

    def trained(self, model: AnyHookedModel) -> tuple[str, ...]:
        """Return the names of the matrices of the MLPs.

        Args:
            model: the model to train.
        """
        matrices = {id(p) for block in model.blocks for p in block.mlp.parameters() if p.ndim == 2}
        return tuple(name for name, parameter in model.named_parameters() if id(parameter) in matrices)

    def value(self, step: Step) -> Float[Tensor, ""]:
        """Compute the loss of NPO on forget text.

        Args:
            step: the models and the batches.
        """
        return NPO(self.beta, retain_weight=0.0).value(step)

    def change_gradients(self, step: Step, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Remove the top principal components of each gradient.

        Args:
            step: the models and the batches.
            gradients: gradients of `value`, by parameter name.

        Returns:
            The changed gradients, by parameter name.
        """
        sources = dict(gradients)
        if self.source == "retain":
            by_name = dict(step.model.named_parameters())
            found = torch.autograd.grad(mean_nll(step.model, step.retained), [by_name[name] for name in gradients])
            sources = dict(zip(gradients, found, strict=True))
        return {name: remove_components(gradient, sources[name], self.share) for name, gradient in gradients.items()}


def remove_components(
    gradient: Float[Tensor, "rows columns"], source: Float[Tensor, "rows columns"], share: float
) -> Float[Tensor, "rows columns"]:
    """Project a gradient onto the complement of the first singular vectors of another, on both sides.

    Args:
        gradient: the gradient to change.
        source: the gradient that the singular vectors are computed from.
        share: share of the singular vectors to remove, rounded up; at least one is kept.

    Returns:
        `(1 - U U^T) gradient (1 - V V^T)`.
    """
    rank = min(source.shape)
    n_removed = min(math.ceil(share * rank), rank - 1)
    u, _, v = torch.linalg.svd(in_float32(source), full_matrices=False)
    u, v = u[:, :n_removed], v[:n_removed]
    left = in_float32(gradient)
    left = left - u @ (u.mT @ left)
    return (left - (left @ v.mT) @ v).to(gradient.dtype)
