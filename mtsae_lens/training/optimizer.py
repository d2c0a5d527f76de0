"""The optimizer of training, AdamW, with SAELens's schedule of the learning rate.

Some weights are laid out in memory by columns. torch's fused AdamW first copies a gradient that is not contiguous, which takes longer than the
update itself. For the time of an update a column-major weight is therefore replaced by its transpose, which is contiguous: the update is the
same for every element.
"""

from __future__ import annotations

from typing import Any

import torch
from sae_lens import TrainingSAE
from torch import nn

from mtsae_lens.sae.sparse import is_column_major
from mtsae_lens.upstream import SAETrainerConfig, get_lr_scheduler


def make_optimizer(sae: TrainingSAE[Any], cfg: SAETrainerConfig, weight_decay: float) -> torch.optim.AdamW:
    """Make the optimizer of an SAE; without weight decay it is Adam, as in SAELens.

    Args:
        sae: the SAE to train.
        cfg: SAELens's trainer configuration, with the learning rate and the betas.
        weight_decay: weight decay of AdamW.

    Returns:
        The optimizer.
    """
    optimizer = torch.optim.AdamW(
        group_parameters(sae, cfg.lr),
        lr=cfg.lr,
        betas=(cfg.adam_beta1, cfg.adam_beta2),
        weight_decay=weight_decay,
        fused=True,
    )
    update_in_memory_order(optimizer)
    return optimizer


def make_lr_scheduler(cfg: SAETrainerConfig, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """Make the schedule of the learning rate as SAELens does.

    Args:
        cfg: SAELens's trainer configuration.
        optimizer: the optimizer; its learning rate is set at once.

    Returns:
        The schedule.
    """
    assert cfg.lr_end is not None
    ramps = cfg.lr_warm_up_steps + cfg.lr_decay_steps
    return get_lr_scheduler(
        cfg.lr_scheduler_name,
        lr=cfg.lr,
        optimizer=optimizer,
        warm_up_steps=cfg.lr_warm_up_steps,
        decay_steps=cfg.lr_decay_steps,
        # a cosine over no step at all would divide by zero in the last update
        training_steps=cfg.total_training_steps + (ramps == cfg.total_training_steps),
        lr_end=cfg.lr_end,
        num_cycles=cfg.n_restart_cycles,
    )


def keep_lr_ratios_(optimizer: torch.optim.Optimizer) -> None:
    """Give every group of weights its share of the learning rate of the first one, in place: the share that it started with.

    A schedule ends at one learning rate for all groups, so without this a group with a lower rate would reach that of the others.

    Args:
        optimizer: the optimizer, after a step of its schedule.
    """
    first, *others = optimizer.param_groups
    for group in others:
        group["lr"] = first["lr"] * group["initial_lr"] / (first["initial_lr"] or 1.0)  # at a rate of 0 all rates are 0


def group_parameters(sae: TrainingSAE[Any], lr: float) -> list[dict[str, Any]]:
    """Group the weights for the optimizer: those of a prediction (`mtsae_lens.sae.memory`) have a separate learning rate.

    Args:
        sae: the SAE to train.
        lr: learning rate of the other weights.

    Returns:
        The groups of parameters, as `torch.optim` takes them.
    """
    named = dict(sae.named_parameters())
    slow = [named.pop(name) for name in ("W_memory_in", "W_memory_out") if name in named]
    groups: list[dict[str, Any]] = [{"params": list(named.values())}]
    return [*groups, {"params": slow, "lr": lr * sae.cfg.memory_lr_ratio}] if slow else groups


def update_in_memory_order(optimizer: torch.optim.Optimizer) -> None:
    """Make an optimizer that treats every element alike update column-major weights as their transposes.

    Between updates weights, gradients and the state of the optimizer have their own shapes.

    Args:
        optimizer: the optimizer; it gets a hook before and one after each step.
    """
    turned: list[nn.Parameter] = []

    def before(*_: Any) -> None:
        for group in optimizer.param_groups:
            turned.extend(p for p in group["params"] if p.grad is not None and is_column_major(p) and is_column_major(p.grad))
        for parameter in turned:
            _transpose_(optimizer, parameter)

    def after(*_: Any) -> None:
        while turned:
            _transpose_(optimizer, turned.pop())

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def _transpose_(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> None:
    gradient, parameter.grad = parameter.grad, None  # a gradient must have the shape of its weight
    parameter.data = parameter.data.T
    assert gradient is not None
    parameter.grad = gradient.T
    state = optimizer.state[parameter]
    for name, value in state.items():
        if torch.is_tensor(value) and value.ndim == 2:
            state[name] = value.T
