"""The activation functions of an MTSAE, which turn pre-activations into feature activations, and their settings.

`register_activation` adds one under a name, which is then a value of `MTSAEConfig.activation`. The four of the package follow SAELens: they use
its autograd functions and its names of settings, losses, coefficients and tensors. There is no `rescale_acts_by_decoder_norm`, because an MTSAE
keeps the rows of its decoder at unit norm instead. Activation objects hold no tensors. Their thresholds are stored in the SAE, so that they
are trained, moved and saved with the other weights. JumpReLU is in `mtsae_lens.sae.jumprelu`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from sae_lens import SAE
from torch import Tensor, nn
from typing_extensions import override

from mtsae_lens.errors import ConfigError
from mtsae_lens.sae import jumprelu  # noqa: F401 -- registers it
from mtsae_lens.sae.activation_interface import (
    Activation,
    ActiveEntries,
    StateTensor,
    register_activation,
    state_tensor,
)
from mtsae_lens.sae.entries import Entries
from mtsae_lens.sae.largest import keep_largest, largest_entries, largest_of_rows
from mtsae_lens.sae.sparse import decode_entries
from mtsae_lens.upstream import BatchTopK as BatchTopKFunction
from mtsae_lens.upstream import TrainCoefficientConfig, TrainStepInput, calculate_topk_aux_acts


@register_activation("relu")
class ReLU(Activation):
    """Keep the positive pre-activations; sparsity comes from an L1 penalty, weighted by the norms of the decoder rows."""

    fields: ClassVar[tuple[str, ...]] = ("l1_coefficient", "l1_warm_up_steps")

    @override
    def function(self, cfg: Any) -> Callable[[Tensor], Tensor]:
        return nn.ReLU()

    @override
    def coefficients(self, cfg: Any) -> dict[str, float | TrainCoefficientConfig]:
        return {"l1": TrainCoefficientConfig(cfg.l1_coefficient, cfg.l1_warm_up_steps)}

    @override
    def losses(
        self, sae: SAE[Any], step_input: TrainStepInput, feature_acts: Tensor, hidden_pre: Tensor, sae_out: Tensor
    ) -> dict[str, Tensor]:
        l1 = (feature_acts.abs() * sae.W_dec.norm(dim=-1)).sum(dim=-1).mean()
        return {"l1_loss": step_input.coefficients["l1"] * l1}

    @override
    def find_entries(self, sae: SAE[Any], hidden_pre: Tensor, kept: Tensor, most: int) -> Entries | None:
        return Entries.of_few(~(hidden_pre <= 0) & kept.unsqueeze(-1), most)  # a NaN must not vanish

    @override
    def entry_losses(
        self, sae: SAE[Any], step_input: TrainStepInput, active: ActiveEntries, sae_out: Tensor
    ) -> dict[str, Tensor]:
        l1 = (active.feature_acts * sae.W_dec.norm(dim=-1)[active.entries.feature]).sum() / active.kept.sum()
        return {"l1_loss": step_input.coefficients["l1"] * l1}

    @override
    def describe(self, cfg: Any) -> str:
        return "those above zero"


def _k_aux(sae: SAE[Any]) -> int:
    """Return how many dead features learn the residual of a position (appendix B.1 of Gao et al. 2024)."""
    return max(1, sae.W_dec.shape[1] // 2)


@register_activation("topk")
class TopK(Activation):
    """Keep the `k` largest pre-activations of a position, those of them that are positive; dead features learn the residual (AuxK)."""

    fields: ClassVar[tuple[str, ...]] = ("k", "aux_loss_coefficient")

    @override
    def check(self, cfg: Any) -> None:
        if not 1 <= cfg.k <= cfg.d_sae:
            raise ConfigError(f"expected k from 1 to d_sae={cfg.d_sae}, got {cfg.k}; give such as k=16")

    @override
    def function(self, cfg: Any) -> Callable[[Tensor], Tensor]:
        return partial(keep_largest, k=cfg.k)

    @override
    def losses(
        self, sae: SAE[Any], step_input: TrainStepInput, feature_acts: Tensor, hidden_pre: Tensor, sae_out: Tensor
    ) -> dict[str, Tensor]:
        dead = self._dead(sae, step_input)
        if dead is None:
            return {}
        aux_acts = calculate_topk_aux_acts(min(_k_aux(sae), int(dead.sum())), hidden_pre, dead)
        residual = (step_input.sae_in - sae_out).detach()
        return self._aux_loss(sae, dead, aux_acts @ sae.W_dec - residual)

    def _dead(self, sae: SAE[Any], step_input: TrainStepInput) -> Tensor | None:
        """Return the mask of dead features, if there is an auxiliary loss and any feature is dead."""
        dead = step_input.dead_neuron_mask
        return None if dead is None or sae.cfg.aux_loss_coefficient == 0 or not dead.any() else dead

    def _aux_loss(self, sae: SAE[Any], dead: Tensor, errors: Tensor) -> dict[str, Tensor]:
        weight = sae.cfg.aux_loss_coefficient * min(int(dead.sum()) / _k_aux(sae), 1.0)
        return {"auxiliary_reconstruction_loss": weight * errors.pow(2).sum(dim=-1).mean()}

    @override
    def find_entries(self, sae: SAE[Any], hidden_pre: Tensor, kept: Tensor, most: int) -> Entries | None:
        if sae.cfg.k * len(hidden_pre) > most:
            return None
        features = largest_of_rows(hidden_pre, sae.cfg.k)
        values = hidden_pre.gather(-1, features)
        return Entries.of_features(features, ~(values <= 0) & kept.unsqueeze(-1), sae.cfg.d_sae)  # a NaN must not vanish

    @override
    def find_loss_entries(self, sae: SAE[Any], step_input: TrainStepInput, hidden_pre: Tensor, kept: Tensor) -> Entries | None:
        dead = self._dead(sae, step_input)
        if dead is None:
            return None
        (features,) = dead.nonzero(as_tuple=True)
        chosen = largest_of_rows(hidden_pre[:, features], min(_k_aux(sae), len(features)))
        return Entries.of_features(features[chosen], kept.unsqueeze(-1).expand_as(chosen), sae.cfg.d_sae)

    @override
    def entry_losses(
        self, sae: SAE[Any], step_input: TrainStepInput, active: ActiveEntries, sae_out: Tensor
    ) -> dict[str, Tensor]:
        dead = self._dead(sae, step_input)
        if dead is None:
            return {}
        residual = (step_input.sae_in - sae_out).detach()
        errors = decode_entries(active.loss_hidden_pre, active.loss_entries, sae.W_dec) - residual
        return self._aux_loss(sae, dead, errors[active.kept])

    @override
    def scale_features(self, sae: SAE[Any], factors: Tensor) -> None:
        if not torch.allclose(factors, factors.mean().expand_as(factors), rtol=1e-4):
            raise NotImplementedError(
                f"expected decoder rows of the same norm, got norms from {factors.min():.4g} to {factors.max():.4g}, which would change which "
                "features the top-k keeps once they are folded; train with normalize_decoder=True, or load with fold_W_dec_norm=False"
            )

    @override
    def export(self, sae: SAE[Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"activation": self.name, "k": sae.cfg.k}

    @override
    def describe(self, cfg: Any) -> str:
        return str(cfg.k)


@register_activation("batchtopk")
class BatchTopK(TopK):
    """Keep the largest positive pre-activations of a batch, `k` a position on average (Bussmann et al. 2024, arXiv 2412.06410).

    A moving average of the smallest activation that was kept is the threshold of the SAE for inference, a JumpReLU one.
    """

    fields: ClassVar[tuple[str, ...]] = ("k", "aux_loss_coefficient", "topk_threshold_lr")

    @property
    @override
    def inference(self) -> str:
        return "jumprelu"

    @override
    def state(self, cfg: Any, *, training: bool) -> Mapping[str, StateTensor]:
        return {"topk_threshold": StateTensor(0.0, per_feature=False, learned=False, dtype=torch.double)}

    @override
    def function(self, cfg: Any) -> Callable[[Tensor], Tensor]:
        return BatchTopKFunction(cfg.k)

    @override
    def apply_in_training(self, sae: SAE[Any], hidden_pre: Tensor, kept: Tensor) -> Tensor:
        if kept.all():
            return sae.activation_fn(hidden_pre)
        feature_acts = torch.zeros_like(hidden_pre)  # walls take no part in the choice
        feature_acts[kept] = sae.activation_fn(hidden_pre[kept])
        return feature_acts

    @override
    def find_entries(self, sae: SAE[Any], hidden_pre: Tensor, kept: Tensor, most: int) -> Entries | None:
        rows = kept.nonzero().squeeze(1)
        n, shape = int(sae.cfg.k * len(rows)), (hidden_pre.shape[0], hidden_pre.shape[1])
        if n > most:
            return None
        if len(rows) == len(kept):
            return Entries.of_flat(largest_entries(hidden_pre, n), shape)
        flat = largest_entries(hidden_pre[rows], n)  # walls take no part in the choice
        return Entries.of_flat(rows[flat.div(shape[1], rounding_mode="floor")] * shape[1] + flat % shape[1], shape)

    @override
    def check_training(self, cfg: Any) -> None:
        if not 0 < cfg.topk_threshold_lr <= 1:
            raise ConfigError(
                f"expected topk_threshold_lr above 0 and at most 1, got {cfg.topk_threshold_lr}; give such as 0.01"
            )

    @override
    @torch.no_grad()
    def after_training_step(self, sae: SAE[Any], feature_acts: Tensor) -> dict[str, Tensor | float]:
        threshold, rate = state_tensor(sae, "topk_threshold"), sae.cfg.topk_threshold_lr
        active = feature_acts[feature_acts > 0]
        if active.numel():
            threshold.mul_(1 - rate).add_(rate * active.min().to(threshold.dtype))
        return {"topk_threshold": threshold.clone()}

    @override
    def to_inference(self, sae: SAE[Any], state_dict: dict[str, Tensor]) -> None:
        state_dict["threshold"] = torch.full_like(state_dict["b_enc"], state_dict.pop("topk_threshold").item())

    @override
    def scale_features(self, sae: SAE[Any], factors: Tensor) -> None:
        super().scale_features(sae, factors)
        state_tensor(sae, "topk_threshold").mul_(factors.mean())
