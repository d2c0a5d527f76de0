"""Losses that are minimized to make a model forget.

NLL is the mean over counted tokens, in nats. The index f stands for forget text, r for retain text.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.lazy_logits import lazy_logits
from mtsae_lens.data.padding import attention_options
from mtsae_lens.errors import ConfigError
from mtsae_lens.unlearning.finetuning.batches import Batch
from mtsae_lens.unlearning.finetuning.loss_interface import Step


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


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ConfigError(f"expected {name} greater than 0, got {value}; raise it")
