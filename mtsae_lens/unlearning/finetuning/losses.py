"""Losses that are minimized to make a model forget. NLL is the mean over counted tokens, in nats; f is forget text, r retain text."""

from __future__ import annotations

from collections.abc import Callable
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
    """What a loss is computed from: the model that is trained, the model before, and a batch of each text."""

    model: AnyHookedModel
    clean: AnyHookedModel
    forget: Batch
    retain: Batch | None = None

    @property
    def retained(self) -> Batch:
        """The retain text.

        Raises:
            ConfigError: there is none.
        """
        if self.retain is None:
            raise ConfigError("this loss needs retain text; give at least one table of it")
        return self.retain


@runtime_checkable
class UnlearningLoss(Protocol):
    """A loss that is minimized to change a model's weights. Each class says which weights are trained, and what it needs."""

    @property
    def uses_retain(self) -> bool:
        """Whether the value depends on retain text."""
        ...

    @property
    def negates(self) -> bool:
        """Whether the change of the weights is to be subtracted instead of added: the loss learns what is to be forgotten."""
        ...

    def trained(self, model: AnyHookedModel) -> tuple[str, ...]:
        """Return the names of the parameters that are trained."""
        ...

    def value(self, step: Step) -> Float[Tensor, ""]:
        """Compute the loss of one step."""
        ...


def predictions_nll(model: AnyHookedModel, batch: Batch) -> Float[Tensor, " counted"]:
    """Compute the negative log-likelihood of each counted token, contexts one after the other."""
    logits = lazy_logits(model, batch.tokens, prepend_bos=False, **attention_options(model, batch.padding))[:, :-1]
    return logits[batch.counted].nll(batch.tokens[:, 1:][batch.counted])


def mean_nll(model: AnyHookedModel, batch: Batch) -> Float[Tensor, ""]:
    """Compute the NLL per counted token."""
    return predictions_nll(model, batch).mean()


def context_nll(model: AnyHookedModel, batch: Batch) -> Float[Tensor, " batch"]:
    """Compute the NLL of each context, summed over its counted tokens: `-log p(y|x)`."""
    nll = predictions_nll(model, batch)
    rows = batch.counted.nonzero()[:, 0]
    return torch.zeros(len(batch.tokens), dtype=nll.dtype, device=nll.device).index_add(0, rows, nll)


@dataclass(frozen=True)
class OfAllWeights:
    """A loss that trains every parameter, along the gradient."""

    uses_retain = True
    negates = False

    def trained(self, model: AnyHookedModel) -> tuple[str, ...]:
        """Return the names of all parameters."""
        return tuple(name for name, _ in model.named_parameters())


@dataclass(frozen=True)
class GradientAscent(OfAllWeights):
    """`-NLL_f` (Jang et al. 2022, arXiv 2210.01504). Unbounded: it ends in a broken model unless it is stopped."""

    uses_retain = False

    def value(self, step: Step) -> Float[Tensor, ""]:
        """Compute `-NLL_f`."""
        return -mean_nll(step.model, step.forget)


@dataclass(frozen=True)
class Amnesiac(OfAllWeights):
    """The updates that learning the forget text makes, subtracted: `theta - c * sum of updates`, with multiples `c`.

    After amnesiac unlearning (Graves et al. 2021, arXiv 2010.10981), with a difference that matters. They log the updates of the
    forget batches while the model is first trained and subtract those, once. Nobody logged the training of a model that is given; so here
    it learns the forget text a little further, from where it stands, and the sum of these updates is subtracted, as often as it takes.
    That is the negation of a task vector (Ilharco et al. 2022, arXiv 2212.04089).
    """

    uses_retain = False
    negates = True

    def value(self, step: Step) -> Float[Tensor, ""]:
        """Compute `NLL_f`."""
        return mean_nll(step.model, step.forget)


@dataclass(frozen=True)
class GradientDifference(OfAllWeights):
    """`-NLL_f + retain_weight * NLL_r` (Liu et al. 2022, arXiv 2203.12817)."""

    retain_weight: float = 1.0

    def value(self, step: Step) -> Float[Tensor, ""]:
        """Compute the difference."""
        return -mean_nll(step.model, step.forget) + self.retain_weight * mean_nll(step.model, step.retained)


@dataclass(frozen=True)
class NPO(OfAllWeights):
    """Negative preference optimization (Zhang et al. 2024, arXiv 2404.05868), with a retain term unless `retain_weight=0`.

        -(2 / beta) * mean over contexts of log sigmoid(-beta * log(p(y|x) / p_clean(y|x))) + retain_weight * NLL_r

    `log p` is summed over the counted tokens of a context, as in the paper. Its weight on a context fades once `beta` times the context's
    loss has risen by a few nats, so for long contexts `beta` decides how much is forgotten.
    """

    beta: float = 0.1
    retain_weight: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("beta", self.beta)

    @property
    def uses_retain(self) -> bool:  # type: ignore[override]
        """Whether the retain term has a weight."""
        return self.retain_weight != 0

    def value(self, step: Step) -> Float[Tensor, ""]:
        """Compute the loss."""
        with torch.no_grad():
            before = context_nll(step.clean, step.forget)
        log_ratio = before - context_nll(step.model, step.forget)
        loss = -(2 / self.beta) * F.logsigmoid(-self.beta * log_ratio).mean()
        return loss + self.retain_weight * mean_nll(step.model, step.retained) if self.uses_retain else loss


@dataclass(frozen=True)
class SimNPO(OfAllWeights):
    """NPO without a reference, by length (Fan et al. 2024, arXiv 2410.07163).

    -(2 / beta) * mean over contexts of log sigmoid(-(beta / |y|) * log p(y|x) - gamma) + retain_weight * NLL_r
    """

    beta: float = 4.5
    gamma: float = 0.0
    retain_weight: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("beta", self.beta)

    def value(self, step: Step) -> Float[Tensor, ""]:
        """Compute the loss."""
        per_token = context_nll(step.model, step.forget) / step.forget.counted.sum(dim=1).clamp(min=1)
        loss = -(2 / self.beta) * F.logsigmoid(self.beta * per_token - self.gamma).mean()
        return loss + self.retain_weight * mean_nll(step.model, step.retained)


@dataclass(frozen=True)
class RMU:
    """Representation misdirection (Li et al. 2024, arXiv 2403.03218): activations h after a layer, means over the positions from which
    counted tokens are predicted.

        mean |h_f - c u|^2 / d_model + retain_weight * mean |h_r - h_r_clean|^2 / d_model

    u is a unit vector of uniform entries in [0, 1), fixed. Its length is `c = steering * mean |h_f_clean|`, in units of the activations
    (after adaptive RMU, Huu-Tien et al. 2024, arXiv 2408.06223), so that a setting means the same in every model. The weights of
    `n_layers` layers up to that one move.
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

        Raises:
            ConfigError: the model has no such layer.
        """
        n = model.cfg.n_layers
        if self.layer is not None and not 0 <= self.layer < n:
            raise ConfigError(f"layer must lie between 0 and {n - 1} in this model; got {self.layer}")
        return n // 2 if self.layer is None else self.layer

    def trained(self, model: AnyHookedModel) -> tuple[str, ...]:
        """Return the names of the parameters of the trained layers."""
        last = self.layer_in(model)
        layers = [model.blocks[layer] for layer in range(max(0, last - self.n_layers + 1), last + 1)]
        in_layers = {id(parameter) for layer in layers for parameter in layer.parameters()}
        return tuple(name for name, parameter in model.named_parameters() if id(parameter) in in_layers)

    def value(self, step: Step) -> Float[Tensor, ""]:
        """Compute the loss."""
        layer = self.layer_in(step.model)
        h_f, h_r = (_activations(step.model, batch, layer) for batch in (step.forget, step.retained))
        with torch.no_grad():
            h_f_clean, h_r_clean = (_activations(step.clean, batch, layer) for batch in (step.forget, step.retained))
            u = torch.rand(h_f.shape[-1], generator=torch.Generator().manual_seed(self.seed)).to(h_f)
            target = self.steering * h_f_clean.norm(dim=-1).mean() * u / u.norm()
        return (h_f - target).pow(2).mean() + self.retain_weight * F.mse_loss(h_r, h_r_clean)


def _activations(model: AnyHookedModel, batch: Batch, layer: int) -> Float[Tensor, "state d_model"]:
    """Run to a layer and take the residual stream where counted tokens are predicted; not at the first position, alike in every text."""
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
        raise ConfigError(f"{name} must be greater than 0; got {value}")


LOSSES: dict[str, Callable[..., UnlearningLoss]] = {
    "gradient_ascent": GradientAscent,
    "amnesiac": Amnesiac,
    "gradient_difference": GradientDifference,
    "npo": NPO,
    "simnpo": SimNPO,
    "rmu": RMU,
}
"""Classes by name; their defaults are what the paper gives or, where that depends on the model, what suits a small one. `register_loss` in
`mtsae_lens.unlearning.finetuning.sweeps` adds one of your own."""
