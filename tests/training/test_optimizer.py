"""Updates of weights that are laid out in memory by columns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sae_lens import LoggingConfig
from torch import nn
from torch.testing import assert_close

from mtsae_lens import MTTrainingSAEConfig
from mtsae_lens.sae.sparse import column_major, is_column_major
from mtsae_lens.sae.training import MTTrainingSAE
from mtsae_lens.training.optimizer import keep_lr_ratios_, make_lr_scheduler, make_optimizer, update_in_memory_order
from mtsae_lens.upstream import SAETrainerConfig


def weights(layout: Any = torch.clone) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((6, 4), (3, 5), (4,))
    values = [torch.randn(shape, generator=generator) for shape in shapes]
    return [nn.Parameter(layout(values[0])), *map(nn.Parameter, values[1:])]


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1, fused=True)


@pytest.mark.parametrize("first_gradient", [True, False])
def test_the_update_is_that_of_the_same_weight_by_rows(first_gradient: bool) -> None:
    by_columns, by_rows = weights(column_major), weights()
    optimizers = adamw(by_columns), adamw(by_rows)
    update_in_memory_order(optimizers[0])
    generator = torch.Generator().manual_seed(1)
    for step in range(4):
        for one, other in zip(by_columns, by_rows, strict=True):
            gradient = torch.randn(other.shape, generator=generator)
            has_gradient = step > 0 or first_gradient or other.ndim == 1
            other.grad = gradient if has_gradient else None
            one.grad = (column_major(gradient) if is_column_major(one) else gradient.clone()) if has_gradient else None
        for optimizer in optimizers:
            optimizer.step()
        assert is_column_major(by_columns[0])
        assert_close(by_columns, by_rows, rtol=0, atol=0)
    found, expected = (optimizer.state_dict()["state"] for optimizer in optimizers)
    assert_close(found, expected, rtol=0, atol=0)
    assert found[0]["exp_avg"].shape == (6, 4)


def test_the_fused_update_sees_contiguous_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = weights(column_major)
    optimizer = adamw(parameters)
    update_in_memory_order(optimizer)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.extend((p.is_contiguous(), p.grad.is_contiguous()) for p in parameters))
    parameters[0].grad = column_major(torch.ones(6, 4))
    for parameter in parameters[1:]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert seen == [(True, True)] * 3


@pytest.mark.parametrize(("schedule", "end"), [("cosineannealing", 0.05), ("cosineannealing", 1.0), ("constant", 1.0)])
def test_the_prediction_of_a_memory_keeps_its_share_of_the_learning_rate(schedule: str, end: float) -> None:
    """A floor of the schedule that is the same for all weights would end the prediction's rate at that of the others."""
    sae = MTTrainingSAE(MTTrainingSAEConfig(d_in=4, d_sae=8, k=2, context_size=8, memory="predictive", memory_lags=(1,)))
    cfg = SAETrainerConfig(
        n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False, total_training_samples=20, device="cpu",
        autocast=False, lr=4e-3, lr_end=end * 4e-3, lr_scheduler_name=schedule, lr_warm_up_steps=3, adam_beta1=0.9,
        adam_beta2=0.999, lr_decay_steps=2, n_restart_cycles=1, train_batch_size_samples=1, dead_feature_window=10,
        feature_sampling_window=10, logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    optimizer = make_optimizer(sae, cfg, 0.0)
    scheduler = make_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(20):
        first, second = (group["lr"] for group in optimizer.param_groups)
        rates.append(first)
        assert second == pytest.approx(sae.cfg.memory_lr_ratio * first, abs=1e-12)
        optimizer.step()
        scheduler.step()
        keep_lr_ratios_(optimizer)
    assert max(rates) == pytest.approx(4e-3)
