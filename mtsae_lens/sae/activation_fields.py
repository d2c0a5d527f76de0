"""The settings of activations (`ActivationFields`), and those of their training (`ActivationTrainingFields`)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from mtsae_lens.errors import ConfigError
from mtsae_lens.sae import activations  # noqa: F401  # registers the activations of the package
from mtsae_lens.sae.activation_interface import ACTIVATIONS


@dataclass(kw_only=True)
class ActivationFields:
    """The settings of activations that training and inference share."""

    activation: str = "topk"
    """`topk` keeps the `k` largest pre-activations of a position. `relu` keeps the positive ones and needs an L1 penalty. `batchtopk`, in
    training, keeps the largest of the batch, `k` a position on average; the trained SAE has `jumprelu`. `jumprelu` keeps those above a
    learned threshold of the feature and needs an L0 penalty. A name that you registered selects your own (`register_activation`)."""

    k: int = 32
    """Features active at a position, for `topk`; on average over the batch, for `batchtopk`."""

    def check_activation(self) -> None:
        """Check the settings of the activation.

        Raises:
            ConfigError: the activation is unknown, or a setting does not fit it.
        """
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"expected activation of {', '.join(ACTIVATIONS)}, got {self.activation!r}; give one of them")
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
        """The names of the settings that the chosen activation does not read, so that their values change nothing."""
        names = {field.name for field in dataclasses.fields(ActivationTrainingFields)}
        return names - {"activation", *ACTIVATIONS[self.activation].fields}

    def check_activation(self) -> None:
        """Check the settings of the activation.

        Raises:
            ConfigError: the value of a setting is invalid, or does not fit the activation.
        """
        for name in ("l1_coefficient", "l1_warm_up_steps", "aux_loss_coefficient", "l0_coefficient", "l0_warm_up_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"expected {name} of at least 0, got {getattr(self, name)}; raise it")
        super().check_activation()
        ACTIVATIONS[self.activation].check_training(self)
