"""Representation misdirection (RMU): a loss of the activations after a layer, which trains the layers up to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.padding import attention_options
from mtsae_lens.data.precision import in_float32
from mtsae_lens.errors import ConfigError, ModelError
from mtsae_lens.unlearning.finetuning.batches import Batch
from mtsae_lens.unlearning.finetuning.loss_interface import Step


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
