"""The JumpReLU activation (Rajamanoharan et al. 2024, arXiv 2407.14435), with SAELens's gradients and losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from sae_lens import SAE
from torch import Tensor, nn
from torch.autograd import Function
from typing_extensions import override

from mtsae_lens.errors import ConfigError
from mtsae_lens.sae.activation_interface import Activation, ActiveEntries, StateTensor, register_activation, state_tensor
from mtsae_lens.sae.entries import Entries
from mtsae_lens.upstream import JumpReLU as JumpReLUFunction
from mtsae_lens.upstream import Step, TrainCoefficientConfig, TrainStepInput, calculate_pre_act_loss


@register_activation("jumprelu")
class JumpReLU(Activation):
    """Keep the pre-activations above a learned threshold of the feature (Rajamanoharan et al. 2024, arXiv 2407.14435).

    The thresholds are learned with SAELens's straight-through estimators. In training they are in float32, as in SAELens, because in bfloat16
    the steps of the optimizer would be lost to rounding.
    """

    fields: ClassVar[tuple[str, ...]] = (
        "jumprelu_init_threshold",
        "jumprelu_bandwidth",
        "jumprelu_sparsity_loss_mode",
        "jumprelu_tanh_scale",
        "jumprelu_ste_to_input",
        "l0_coefficient",
        "l0_warm_up_steps",
        "pre_act_loss_coefficient",
        "target_l0",
    )

    @override
    def check_training(self, cfg: Any) -> None:
        for name in ("jumprelu_bandwidth", "jumprelu_tanh_scale"):
            if getattr(cfg, name) <= 0:
                raise ConfigError(f"expected {name} above 0, got {getattr(cfg, name)}; raise it")
        for name in ("jumprelu_init_threshold", "pre_act_loss_coefficient"):
            if (getattr(cfg, name) or 0) < 0:
                raise ConfigError(f"expected {name} of at least 0, got {getattr(cfg, name)}; raise it")
        if cfg.jumprelu_sparsity_loss_mode == "quadratic" and not (
            cfg.target_l0 is not None and 0 < cfg.target_l0 <= cfg.d_sae
        ):
            raise ConfigError(
                f"expected target_l0 above 0 and at most d_sae={cfg.d_sae} for jumprelu_sparsity_loss_mode='quadratic', got {cfg.target_l0}; "
                "set it to the number of features that should be active at a position"
            )

    @override
    def state(self, cfg: Any, *, training: bool) -> Mapping[str, StateTensor]:
        if training:
            return {"threshold": StateTensor(cfg.jumprelu_init_threshold, dtype=torch.float32)}
        return {"threshold": StateTensor(0.0)}

    @override
    def function(self, cfg: Any) -> Callable[[Tensor], Tensor]:
        return nn.ReLU()

    @override
    def apply(self, sae: SAE[Any], hidden_pre: Tensor) -> Tensor:
        feature_acts = sae.activation_fn(hidden_pre)
        return feature_acts * (hidden_pre > state_tensor(sae, "threshold")).to(feature_acts.dtype)

    @override
    def apply_in_training(self, sae: SAE[Any], hidden_pre: Tensor, kept: Tensor) -> Tensor:
        cfg, threshold = sae.cfg, state_tensor(sae, "threshold").to(hidden_pre.dtype)
        # SAELens's function sums the gradient of the threshold over the first dimension alone
        rows = JumpReLUFunction.apply(hidden_pre.flatten(0, -2), threshold, cfg.jumprelu_bandwidth, cfg.jumprelu_ste_to_input)
        return rows.view_as(hidden_pre)

    @override
    def coefficients(self, cfg: Any) -> dict[str, float | TrainCoefficientConfig]:
        return {"l0": TrainCoefficientConfig(cfg.l0_coefficient, cfg.l0_warm_up_steps)}

    @override
    @torch.no_grad()
    def before_training_step(self, sae: SAE[Any]) -> None:
        state_tensor(sae, "threshold").data.clamp_(min=0.0)  # below zero, negative pre-activations would pass

    @override
    def losses(
        self, sae: SAE[Any], step_input: TrainStepInput, feature_acts: Tensor, hidden_pre: Tensor, sae_out: Tensor
    ) -> dict[str, Tensor]:
        cfg, threshold = sae.cfg, state_tensor(sae, "threshold").to(hidden_pre.dtype)
        norms = sae.W_dec.norm(dim=1)
        if cfg.jumprelu_sparsity_loss_mode == "tanh":
            sparsity = torch.tanh(cfg.jumprelu_tanh_scale * feature_acts * norms).sum(dim=-1)
        else:
            sparsity = Step.apply(hidden_pre, threshold, cfg.jumprelu_bandwidth, cfg.jumprelu_ste_to_input).sum(dim=-1)
        if cfg.jumprelu_sparsity_loss_mode == "quadratic":
            sparsity = 2 / cfg.target_l0 * (sparsity - cfg.target_l0) ** 2
        losses = {"l0_loss": (step_input.coefficients["l0"] * sparsity).mean()}
        if cfg.pre_act_loss_coefficient is not None:
            losses["pre_act_loss"] = calculate_pre_act_loss(
                cfg.pre_act_loss_coefficient, threshold, hidden_pre, step_input.dead_neuron_mask, norms
            )
        return losses

    @override
    def find_entries(self, sae: SAE[Any], hidden_pre: Tensor, kept: Tensor, most: int) -> Entries | None:
        # below its threshold a pre-activation matters as far as the kernel reaches: half its width, and a little more for rounding
        least = state_tensor(sae, "threshold") - 0.51 * sae.cfg.jumprelu_bandwidth
        return Entries.of_few(~(hidden_pre <= least.to(hidden_pre.dtype)) & kept.unsqueeze(-1), most)

    @override
    def activate_entries(self, sae: SAE[Any], hidden_pre: Tensor, entries: Entries) -> Tensor:
        return self._at_entries(sae, JumpReLUFunction, hidden_pre, entries)

    @override
    def find_loss_entries(self, sae: SAE[Any], step_input: TrainStepInput, hidden_pre: Tensor, kept: Tensor) -> Entries | None:
        dead = step_input.dead_neuron_mask
        if sae.cfg.pre_act_loss_coefficient is None or dead is None or not dead.any():
            return None
        return Entries.of_mask(dead & kept.unsqueeze(-1))

    @override
    def entry_losses(
        self, sae: SAE[Any], step_input: TrainStepInput, active: ActiveEntries, sae_out: Tensor
    ) -> dict[str, Tensor]:
        cfg, entries, norms = sae.cfg, active.entries, sae.W_dec.norm(dim=1)
        if cfg.jumprelu_sparsity_loss_mode == "tanh":
            terms = torch.tanh(cfg.jumprelu_tanh_scale * active.feature_acts * norms[entries.feature])
        else:
            terms = self._at_entries(sae, Step, active.hidden_pre, entries)
        sparsity = entries.sum_of_rows(terms)[active.kept]
        if cfg.jumprelu_sparsity_loss_mode == "quadratic":
            sparsity = 2 / cfg.target_l0 * (sparsity - cfg.target_l0) ** 2
        losses = {"l0_loss": (step_input.coefficients["l0"] * sparsity).mean()}
        if cfg.pre_act_loss_coefficient is not None:
            features = active.loss_entries.feature
            below = (self._threshold_at(sae, active.loss_hidden_pre, features) - active.loss_hidden_pre).relu() * norms[
                features
            ]
            losses["pre_act_loss"] = cfg.pre_act_loss_coefficient * below.sum() / active.kept.sum()
        return losses

    @staticmethod
    def _threshold_at(sae: SAE[Any], hidden_pre: Tensor, features: Tensor) -> Tensor:
        return state_tensor(sae, "threshold").to(hidden_pre.dtype)[features]

    def _at_entries(self, sae: SAE[Any], function: type[Function], hidden_pre: Tensor, entries: Entries) -> Tensor:
        """Apply a function of SAELens, which sums the gradient of the threshold over the first dimension: here one of size 1."""
        threshold = self._threshold_at(sae, hidden_pre, entries.feature)
        applied: Tensor = function.apply(
            hidden_pre.unsqueeze(0), threshold, sae.cfg.jumprelu_bandwidth, sae.cfg.jumprelu_ste_to_input
        )
        return applied.squeeze(0)

    @override
    def scale_features(self, sae: SAE[Any], factors: Tensor) -> None:
        state_tensor(sae, "threshold").data.mul_(factors)

    @override
    def export(self, sae: SAE[Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"threshold": state_tensor(sae, "threshold")}, {"activation": self.name}

    @override
    def describe(self, cfg: Any) -> str:
        return "those above the threshold of the feature"
