"""Compute what the paper's own numbers imply about each other. All of this is inference, because the paper does not publish its code.

With L0 = L1 = 0 no feature is active, so the reconstruction is one constant vector b for every token. Let m be the mean activation
and V the mean of `||h - m||^2`. Then

    explained variance             = 1 - mean ||h - b||^2 / V  =  -||m - b||^2 / V       never above 0
    relative reconstruction bias   = ||b||^2 / (b . m)                                   0 / 0 if b = 0
    ce_loss_score, kl_div_score    = 0 if b = 0, which is zero ablation itself
"""

from __future__ import annotations

import math

import torch

from mtsae_lens.experiments.paper.published import METRICS, SCALE_STD, SETTINGS, PublishedSettings
from mtsae_lens.experiments.paper.results import Implied


def warm_up_lr(step: int, settings: PublishedSettings = SETTINGS) -> float:
    """Return the learning rate of a step in a linear warm-up from `lr / lr_warm_up_steps`.

    Args:
        step: number of the step, from 1 on.
        settings: settings of the run.
    """
    return settings.lr * min(1.0, step / max(1, settings.lr_warm_up_steps))


def largest_move(settings: PublishedSettings = SETTINGS) -> float:
    """Return about how far Adam can move one weight in the whole run: the sum of the learning rates, because each of its first steps
    has size lr.

    Args:
        settings: settings of the run.
    """
    return math.fsum(warm_up_lr(step, settings) for step in range(1, settings.n_steps + 1))


def is_bfloat16(value: float) -> bool:
    """Return whether bfloat16, with its 8 significant bits, represents a number exactly.

    Args:
        value: the number.
    """
    return torch.tensor(value, dtype=torch.float64).to(torch.bfloat16).to(torch.float64).item() == value


def activation_norm_from_std(convolution_std: float, d_in: int) -> float:
    """Return the activation norm at which untrained taps give a standard deviation of the convolution.

    Three taps, uniform in +-1/sqrt(3), have variance 1/9 each, so `std = rms(h) / sqrt(3)` and `||h|| = std * sqrt(3 * d_in)`.

    Args:
        convolution_std: the standard deviation.
        d_in: width of the activations.
    """
    return convolution_std * math.sqrt(3 * d_in)


def derive_implied(d_in: int = 512) -> Implied:
    """Compute what the published numbers imply.

    Args:
        d_in: width of the paper's model.
    """
    return Implied(
        largest_move_of_a_weight=largest_move(),
        mean_norm_squared_over_variance_if_output_is_zero=-METRICS["explained_variance"],
        explained_variance_is_bfloat16=is_bfloat16(METRICS["explained_variance"]),
        l2_loss_is_bfloat16=is_bfloat16(METRICS["l2_loss"]),
        activation_norm_from_table_1=activation_norm_from_std(SCALE_STD[1], d_in),
        activation_norm_from_l2_loss=METRICS["l2_loss"],
    )
