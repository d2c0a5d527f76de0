"""The activation functions of an MTSAE: what turns pre-activations into feature activations, and the settings of that.

`register_activation` adds one under a name that `MTSAEConfig.activation` then knows. The four here follow SAELens, use its autograd
functions, and call settings, losses, coefficients and tensors by its names. There is no `rescale_acts_by_decoder_norm`: an MTSAE keeps the
rows of its decoder at unit norm instead. Activation objects hold no tensors. What they keep is stored in the SAE, so that it is trained,
moved and saved with the other weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from sae_lens import SAE
from torch import Tensor, nn
from typing_extensions import override

from mtsae_lens.errors import ConfigError
from mtsae_lens.sae.activation_interface import ACTIVATIONS, Activation, StateTensor, register_activation
from mtsae_lens.upstream import BatchTopK as BatchTopKFunction
from mtsae_lens.upstream import JumpReLU as JumpReLUFunction
from mtsae_lens.upstream import Step, TrainCoefficientConfig, TrainStepInput, calculate_pre_act_loss, calculate_topk_aux_acts
from mtsae_lens.upstream import TopK as TopKFunction


@dataclass(kw_only=True)
class ActivationFields:
    """The settings of activations that training and inference share."""

    activation: str = "topk"
    """`topk` keeps the `k` largest pre-activations of a position. `relu` keeps the positive ones and needs an L1 penalty. `batchtopk`, in
    training, keeps the largest of the batch, `k` a position on average; the trained SAE has `jumprelu`. `jumprelu` keeps those above a
    learned threshold of the feature and needs an L0 penalty. Or one that was registered (`mtsae_lens.sae.activations`)."""

    k: int = 32
    """Features active at a position, for `topk`; on average over the batch, for `batchtopk`."""

    def check_activation(self) -> None:
        """Check the settings of the activation.

        Raises:
            ConfigError: there is no such activation, or a setting does not go with it.
        """
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"activation must be one of {', '.join(map(repr, ACTIVATIONS))}; got {self.activation!r}")
        ACTIVATIONS[self.activation].check(self)


@dataclass(kw_only=True)
class ActivationTrainingFields(ActivationFields):
    """The settings of activations in training; names and meanings are those of SAELens."""

    l1_coefficient: float = 1.0
    """Weight of the L1 penalty, for `relu`."""

    l1_warm_up_steps: int = 0
    """Steps over which the L1 weight rises from zero."""

    aux_loss_coefficient: float = 1 / 32
    """Weight of the auxiliary loss by which dead features learn the residual, for `topk` and `batchtopk` (Gao et al. 2024, arXiv
    2406.04093)."""

    topk_threshold_lr: float = 0.01
    """Rate at which the threshold of `batchtopk` follows the smallest activation of each batch; the trained SAE uses this threshold."""

    jumprelu_init_threshold: float = 0.01
    """Threshold of every feature at the start, for `jumprelu`."""

    jumprelu_bandwidth: float = 0.05
    """Width of the kernel that estimates the gradient of a threshold, for `jumprelu` (Rajamanoharan et al. 2024, arXiv 2407.14435)."""

    jumprelu_sparsity_loss_mode: Literal["step", "tanh", "quadratic"] = "step"
    """Sparsity loss of `jumprelu`. `step`: the number of active features. `tanh`: its smooth form, as at Anthropic. `quadratic`: the squared
    distance of that number from `target_l0`, as in Gemma Scope 2."""

    jumprelu_tanh_scale: float = 4.0
    """Steepness of the `tanh` sparsity loss."""

    jumprelu_ste_to_input: bool = False
    """Pass the estimated gradient of the step on to the encoder as well, as at Anthropic, not to the thresholds alone."""

    l0_coefficient: float = 1.0
    """Weight of the sparsity loss, for `jumprelu`."""

    l0_warm_up_steps: int = 0
    """Steps over which the L0 weight rises from zero."""

    pre_act_loss_coefficient: float | None = None
    """Weight of the loss that raises the pre-activations of dead features, for `jumprelu`; None for no such loss."""

    target_l0: float | None = None
    """Number of active features that the `quadratic` sparsity loss aims at."""

    @property
    def unused_activation_fields(self) -> set[str]:
        """The settings above that the chosen activation does not read, so that their values change nothing."""
        names = {field.name for field in dataclasses.fields(ActivationTrainingFields)}
        return names - {"activation", *ACTIVATIONS[self.activation].fields}

    def check_activation(self) -> None:
        """Check the settings of the activation.

        Raises:
            ConfigError: a setting has a value that it cannot have, or that does not go with the activation.
        """
        for name in ("l1_coefficient", "l1_warm_up_steps", "aux_loss_coefficient", "l0_coefficient", "l0_warm_up_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative; got {getattr(self, name)}")
        super().check_activation()
        ACTIVATIONS[self.activation].check_training(self)


def _tensor(sae: SAE[Any], name: str) -> Tensor:
    tensor = getattr(sae, name)
    assert isinstance(tensor, Tensor)
    return tensor


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
    def describe(self, cfg: Any) -> str:
        return "those above zero"


@register_activation("topk")
class TopK(Activation):
    """Keep the `k` largest pre-activations of a position, those of them that are positive; dead features learn the residual (AuxK)."""

    fields: ClassVar[tuple[str, ...]] = ("k", "aux_loss_coefficient")

    @override
    def check(self, cfg: Any) -> None:
        if not 1 <= cfg.k <= cfg.d_sae:
            raise ConfigError(f"k must lie between 1 and d_sae ({cfg.d_sae}); got {cfg.k}")

    @override
    def function(self, cfg: Any) -> Callable[[Tensor], Tensor]:
        return TopKFunction(cfg.k)

    @override
    def losses(
        self, sae: SAE[Any], step_input: TrainStepInput, feature_acts: Tensor, hidden_pre: Tensor, sae_out: Tensor
    ) -> dict[str, Tensor]:
        dead = step_input.dead_neuron_mask
        n_dead = 0 if dead is None else int(dead.sum())
        if dead is None or n_dead == 0 or sae.cfg.aux_loss_coefficient == 0:
            return {}
        k_aux = max(1, sae.cfg.d_in // 2)  # appendix B.1 of Gao et al. 2024
        aux_acts = calculate_topk_aux_acts(min(k_aux, n_dead), hidden_pre, dead)
        residual = (step_input.sae_in - sae_out).detach()
        error = (aux_acts @ sae.W_dec - residual).pow(2).sum(dim=-1).mean()
        return {"auxiliary_reconstruction_loss": sae.cfg.aux_loss_coefficient * min(n_dead / k_aux, 1.0) * error}

    @override
    def scale_features(self, sae: SAE[Any], factors: Tensor) -> None:
        if not torch.allclose(factors, factors.mean().expand_as(factors), rtol=1e-4):
            raise NotImplementedError(
                f"decoder norms range from {factors.min():.4g} to {factors.max():.4g}: folding them would change which features the "
                "top-k keeps. Train with normalize_decoder=True, or load with fold_W_dec_norm=False."
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
    def check_training(self, cfg: Any) -> None:
        if not 0 < cfg.topk_threshold_lr <= 1:
            raise ConfigError(f"topk_threshold_lr must lie above 0 and be at most 1; got {cfg.topk_threshold_lr}")

    @override
    @torch.no_grad()
    def after_training_step(self, sae: SAE[Any], feature_acts: Tensor) -> dict[str, Tensor | float]:
        threshold, rate = _tensor(sae, "topk_threshold"), sae.cfg.topk_threshold_lr
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
        _tensor(sae, "topk_threshold").mul_(factors.mean())


@register_activation("jumprelu")
class JumpReLU(Activation):
    """Keep the pre-activations above a learned threshold of the feature (Rajamanoharan et al. 2024, arXiv 2407.14435).

    The thresholds learn through SAELens's straight-through estimators. In training they keep float32, as in SAELens: in bfloat16 the steps
    of the optimizer would round away.
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
                raise ConfigError(f"{name} must be positive; got {getattr(cfg, name)}")
        for name in ("jumprelu_init_threshold", "pre_act_loss_coefficient"):
            if (getattr(cfg, name) or 0) < 0:
                raise ConfigError(f"{name} must not be negative; got {getattr(cfg, name)}")
        if cfg.jumprelu_sparsity_loss_mode == "quadratic" and not (
            cfg.target_l0 is not None and 0 < cfg.target_l0 <= cfg.d_sae
        ):
            raise ConfigError(
                f"jumprelu_sparsity_loss_mode='quadratic' expected target_l0 above 0 and at most d_sae ({cfg.d_sae}), got "
                f"{cfg.target_l0}; set target_l0 to the number of features that should be active at a position"
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
        return feature_acts * (hidden_pre > _tensor(sae, "threshold")).to(feature_acts.dtype)

    @override
    def apply_in_training(self, sae: SAE[Any], hidden_pre: Tensor, kept: Tensor) -> Tensor:
        cfg, threshold = sae.cfg, _tensor(sae, "threshold").to(hidden_pre.dtype)
        # SAELens's function sums the gradient of the threshold over the first dimension alone
        rows = JumpReLUFunction.apply(hidden_pre.flatten(0, -2), threshold, cfg.jumprelu_bandwidth, cfg.jumprelu_ste_to_input)
        return rows.view_as(hidden_pre)

    @override
    def coefficients(self, cfg: Any) -> dict[str, float | TrainCoefficientConfig]:
        return {"l0": TrainCoefficientConfig(cfg.l0_coefficient, cfg.l0_warm_up_steps)}

    @override
    @torch.no_grad()
    def before_training_step(self, sae: SAE[Any]) -> None:
        _tensor(sae, "threshold").data.clamp_(min=0.0)  # below zero, negative pre-activations would pass

    @override
    def losses(
        self, sae: SAE[Any], step_input: TrainStepInput, feature_acts: Tensor, hidden_pre: Tensor, sae_out: Tensor
    ) -> dict[str, Tensor]:
        cfg, threshold = sae.cfg, _tensor(sae, "threshold").to(hidden_pre.dtype)
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
    def scale_features(self, sae: SAE[Any], factors: Tensor) -> None:
        _tensor(sae, "threshold").data.mul_(factors)

    @override
    def export(self, sae: SAE[Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"threshold": _tensor(sae, "threshold")}, {"activation": self.name}

    @override
    def describe(self, cfg: Any) -> str:
        return "those above the threshold of the feature"
