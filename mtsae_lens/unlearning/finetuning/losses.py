"""Losses that are minimized to make a model forget.

NLL is the mean over counted tokens, in nats. The index f stands for forget text, r for retain text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.lazy_logits import lazy_logits
from mtsae_lens.data.padding import attention_options
from mtsae_lens.data.precision import in_float32
from mtsae_lens.errors import ConfigError, ModelError
from mtsae_lens.unlearning.finetuning.batches import Batch


@dataclass(frozen=True, eq=False)
class Step:
    """What a loss is computed from: the model in training, the clean model, and one batch of each text."""

    model: AnyHookedModel
    clean: AnyHookedModel
    forget: Batch
    retain: Batch | None = None

    @property
    def retained(self) -> Batch:
        """Return the retain text.

        Raises:
            ConfigError: there is no retain text.
        """
        if self.retain is None:
            raise ConfigError("expected retain text for this loss, got none; give at least one table of it")
        return self.retain


@runtime_checkable
class UnlearningLoss(Protocol):
    """A loss that is minimized to change a model's weights. A class says which weights are trained and what the loss needs."""

    @property
    def uses_retain(self) -> bool:
        """Return whether the loss depends on retain text."""
        ...

    @property
    def negates(self) -> bool:
        """Return whether the change of the weights is subtracted instead of added, because the loss learns what should be forgotten."""
        ...

    def trained(self, model: AnyHookedModel) -> tuple[str, ...]:
        """Return the names of the parameters that are trained.

        Args:
            model: the model to train.
        """
        ...

    def value(self, step: Step) -> Float[Tensor, ""]:
        """Compute the loss of one step.

        Args:
            step: the models and the batches.

        Returns:
            A scalar.
        """
        ...


@runtime_checkable
class ChangesGradients(Protocol):
    """What a loss may have besides `UnlearningLoss`: a change of its gradients before every update.

    Plain gradient descent then follows the changed gradients, scaled together to a root mean square of 1, so that a learning rate means
    about the same as with AdamW. AdamW itself scales every entry, which would bring back what the change removes.
    """

    def change_gradients(self, step: Step, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Change the gradients of one step.

        Args:
            step: the models and the batches that the gradients were computed from. The trained parameters require gradients.
            gradients: gradients of `value`, by parameter name.

        Returns:
            The gradients to follow, by parameter name.
        """
        ...


def predictions_nll(model: AnyHookedModel, batch: Batch) -> Float[Tensor, " counted"]:
    """Compute the negative log-likelihood of each counted token.

    Args:
        model: the language model.
        batch: the contexts.

    Returns:
        One value per counted token, context after context, in nats.
    """
    logits = lazy_logits(model, batch.tokens, prepend_bos=False, **attention_options(model, batch.padding))[:, :-1]
    return logits[batch.counted].nll(batch.tokens[:, 1:][batch.counted])


def mean_nll(model: AnyHookedModel, batch: Batch) -> Float[Tensor, ""]:
    """Compute the mean NLL over counted tokens, in nats.

    Args:
        model: the language model.
        batch: the contexts.
    """
    return predictions_nll(model, batch).mean()


def context_nll(model: AnyHookedModel, batch: Batch) -> Float[Tensor, " batch"]:
    """Compute the NLL of each context, summed over its counted tokens: `-log p(y|x)`.

    Args:
        model: the language model.
        batch: the contexts.

    Returns:
        One value per context, in nats.
    """
    nll = predictions_nll(model, batch)
    rows = batch.counted.nonzero()[:, 0]
    return torch.zeros(len(batch.tokens), dtype=nll.dtype, device=nll.device).index_add(0, rows, nll)


@dataclass(frozen=True)
class OfAllWeights:
    """A loss that trains every parameter and follows its gradient."""

    uses_retain = True
    negates = False

    def trained(self, model: AnyHookedModel) -> tuple[str, ...]:
        """Return the names of all parameters.

        Args:
            model: the model to train.
        """
        return tuple(name for name, _ in model.named_parameters())


@dataclass(frozen=True)
class GradientAscent(OfAllWeights):
    """Gradient ascent: `-NLL_f` (Jang et al. 2022, arXiv 2210.01504). It is unbounded and ends in a broken model unless it is stopped."""

    uses_retain = False

    def value(self, step: Step) -> Float[Tensor, ""]:
        """Compute `-NLL_f`.

        Args:
            step: the models and the batches.
        """
        return -mean_nll(step.model, step.forget)


@dataclass(frozen=True)
class Amnesiac(OfAllWeights):
    """Amnesiac unlearning: the sum of the updates that learning the forget text makes is subtracted, `theta - c * sum of updates`.

    After Graves et al. 2021 (arXiv 2010.10981), with an important difference. They log the updates of the forget batches while the
    model is first trained, and subtract them once. Here the model is given and its training was not logged, so it learns the forget
    text a little further, and the sum of these updates is subtracted, with a multiple `c`. This is the negation of a task vector
    (Ilharco et al. 2022, arXiv 2212.04089).
    """

    uses_retain = False
    negates = True

    def value(self, step: Step) -> Float[Tensor, ""]:
        """Compute `NLL_f`.

        Args:
            step: the models and the batches.
        """
        return mean_nll(step.model, step.forget)


@dataclass(frozen=True)
class GradientDifference(OfAllWeights):
    """Gradient difference: `-NLL_f + retain_weight * NLL_r` (Liu et al. 2022, arXiv 2203.12817)."""

    retain_weight: float = 1.0

    def value(self, step: Step) -> Float[Tensor, ""]:
        """Compute `-NLL_f + retain_weight * NLL_r`.

        Args:
            step: the models and the batches.
        """
        return -mean_nll(step.model, step.forget) + self.retain_weight * mean_nll(step.model, step.retained)


@dataclass(frozen=True)
class NPO(OfAllWeights):
    """Negative preference optimization (Zhang et al. 2024, arXiv 2404.05868), with a retain term unless `retain_weight=0`.

        -(2 / beta) * mean over contexts of log sigmoid(-beta * log(p(y|x) / p_clean(y|x))) + retain_weight * NLL_r

    `log p` is summed over the counted tokens of a context, as in the paper. The gradient of a context fades once `beta` times the rise
    of its loss reaches a few nats, so for long contexts `beta` decides how much is forgotten.
    """

    beta: float = 0.1
    retain_weight: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("beta", self.beta)

    @property
    def uses_retain(self) -> bool:  # type: ignore[override]
        """Return whether the retain term has a weight other than 0."""
        return self.retain_weight != 0

    def value(self, step: Step) -> Float[Tensor, ""]:
        """Compute the loss.

        Args:
            step: the models and the batches.
        """
        with torch.no_grad():
            before = context_nll(step.clean, step.forget)
        log_ratio = before - context_nll(step.model, step.forget)
        loss = -(2 / self.beta) * F.logsigmoid(-self.beta * log_ratio).mean()
        return loss + self.retain_weight * mean_nll(step.model, step.retained) if self.uses_retain else loss


@dataclass(frozen=True)
class SimNPO(OfAllWeights):
    """SimNPO: NPO without a reference, normalized by length (Fan et al. 2024, arXiv 2410.07163).

    -(2 / beta) * mean over contexts of log sigmoid(-(beta / |y|) * log p(y|x) - gamma) + retain_weight * NLL_r
    """

    beta: float = 4.5
    gamma: float = 0.0
    retain_weight: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("beta", self.beta)

    def value(self, step: Step) -> Float[Tensor, ""]:
        """Compute the loss.

        Args:
            step: the models and the batches.
        """
        per_token = context_nll(step.model, step.forget) / step.forget.counted.sum(dim=1).clamp(min=1)
        loss = -(2 / self.beta) * F.logsigmoid(self.beta * per_token - self.gamma).mean()
        return loss + self.retain_weight * mean_nll(step.model, step.retained)


@dataclass(frozen=True)
class RMU:
    """Representation misdirection for unlearning (Li et al. 2024, arXiv 2403.03218).

        mean |h_f - c u|^2 / d_model + retain_weight * mean |h_r - h_r_clean|^2 / d_model

    h are the activations after a layer; means are over the positions from which counted tokens are predicted. u is a fixed unit vector
    whose entries are drawn uniformly from [0, 1). Its length is `c = steering * mean |h_f_clean|`, in units of the activations (after
    adaptive RMU, Huu-Tien et al. 2024, arXiv 2408.06223), so that a setting means the same in every model. The weights of the
    `n_layers` layers up to that one are trained.
    """

    steering: float = 2.0
    retain_weight: float = 10.0
    layer: int | None = None
    """The layer whose output is misdirected; None for the middle one."""
    n_layers: int = 3
    seed: int = 0

    uses_retain = True
    negates = False

    def layer_in(self, model: AnyHookedModel) -> int:
        """Return the layer whose output is misdirected.

        Args:
            model: the model to train.

        Raises:
            ConfigError: the model has no such layer.
        """
        n = model.cfg.n_layers
        if self.layer is not None and not 0 <= self.layer < n:
            raise ConfigError(f"expected layer from 0 to {n - 1} for this model, got {self.layer}; change it")
        return n // 2 if self.layer is None else self.layer

    def trained(self, model: AnyHookedModel) -> tuple[str, ...]:
        """Return the names of the parameters of the trained layers.

        Args:
            model: the model to train.
        """
        last = self.layer_in(model)
        layers = [model.blocks[layer] for layer in range(max(0, last - self.n_layers + 1), last + 1)]
        in_layers = {id(parameter) for layer in layers for parameter in layer.parameters()}
        return tuple(name for name, parameter in model.named_parameters() if id(parameter) in in_layers)

    def value(self, step: Step) -> Float[Tensor, ""]:
        """Compute the loss.

        Args:
            step: the models and the batches.
        """
        layer = self.layer_in(step.model)
        h_f, h_r = (_activations(step.model, batch, layer) for batch in (step.forget, step.retained))
        with torch.no_grad():
            h_f_clean, h_r_clean = (_activations(step.clean, batch, layer) for batch in (step.forget, step.retained))
            u = torch.rand(h_f.shape[-1], generator=torch.Generator().manual_seed(self.seed)).to(h_f)
            target = self.steering * h_f_clean.norm(dim=-1).mean() * u / u.norm()
        return (h_f - target).pow(2).mean() + self.retain_weight * F.mse_loss(h_r, h_r_clean)


def _activations(model: AnyHookedModel, batch: Batch, layer: int) -> Float[Tensor, "state d_model"]:
    """Return the residual stream where counted tokens are predicted, except at the first position, which is the same in every text."""
    seen: list[Tensor] = []
    name = f"blocks.{layer}.hook_resid_post"
    options = {"prepend_bos": False, "stop_at_layer": layer + 1} | attention_options(model, batch.padding)
    # by a hook, because after the last layer `stop_at_layer` of a bridge gives logits
    model.run_with_hooks(batch.tokens, fwd_hooks=[(name, lambda h, hook: seen.append(h))], **options)
    if not seen:
        raise ModelError(
            f"expected a model that runs {name}, got {model.cfg.model_name}, which does not; give RMU(layer=...) of another layer"
        )
    return in_float32(seen[0][:, 1:-1][batch.counted[:, 1:] & ~batch.padding[:, :-2]])


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ConfigError(f"expected {name} greater than 0, got {value}; raise it")
