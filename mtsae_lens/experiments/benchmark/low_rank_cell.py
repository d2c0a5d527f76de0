"""Imitate the main edit of an SAE in low-rank weights, and measure and attack these like every method that changes weights."""

from __future__ import annotations

from dataclasses import replace

import torch

from mtsae_lens.data.bridges import AnyHookedModel, HookedBridge, boot_bridge
from mtsae_lens.errors import ModelError
from mtsae_lens.experiments.benchmark.arms import BenchmarkSize
from mtsae_lens.experiments.benchmark.cells import MethodResult
from mtsae_lens.experiments.benchmark.measuring import measure_weights
from mtsae_lens.experiments.benchmark.setup import BenchmarkSetup
from mtsae_lens.export.base_models import BaseModel, check_family, hooked_layer, open_base
from mtsae_lens.export.low_rank import LowRankSettings, train_low_rank
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.unlearning.finetuning.clones import clone_model
from mtsae_lens.unlearning.sweep import Setting
from mtsae_lens.upstream import get_pretrained_state_dict


def measure_low_rank(setup: BenchmarkSetup, size: BenchmarkSize, edit: Edit, setting: Setting, seed: int) -> MethodResult:
    """Train low-rank weights to imitate an edit, and measure and attack them, whatever they cost.

    Args:
        setup: the models and tables of the task, opened.
        size: how much work to do.
        edit: the edit to imitate.
        setting: setting of the edit.
        seed: seed of the training and of the attacks.
    """
    settings = replace(size.low_rank, seed=seed)
    recorded = setting | {"rank": settings.rank, "n_steps": settings.n_steps, "lr": settings.lr}
    weights = imitate(setup, edit, settings)
    return measure_weights(setup, size, [(recorded, weights)], seed, attacked=True, main=0)


def can_imitate(setup: BenchmarkSetup) -> bool:
    """Return whether `mtsae export` knows the family of the language model and the kind of hook.

    Args:
        setup: the models of the task.
    """
    try:
        check_family(setup.model_name)
        hooked_layer(setup.lm.splice.hook_name)
    except ModelError:
        return False
    return True


def imitate(setup: BenchmarkSetup, edit: Edit, settings: LowRankSettings) -> AnyHookedModel:
    """Train low-rank weights toward the edited model, on the text that methods which change weights train on.

    Args:
        setup: the models and tables of the task, opened.
        edit: the edit to imitate.
        settings: rank, steps, learning rate and seed.

    Returns:
        A model of the kind of `setup.lm.model`.
    """
    base = open_base(setup.model_name, device=setup.device)
    forget = setup.training_table(setup.task_of.forget_training)
    retain = [setup.training_table(source) for source in setup.task_of.retain_training]
    train_low_rank(base, setup.lm, edit, forget, retain, settings)
    return add_hooks(base, setup.lm.model)


def add_hooks(base: BaseModel, like: AnyHookedModel) -> AnyHookedModel:
    """Make a Hugging Face model a model with hooks, in memory.

    Args:
        base: the model; a bridge wraps it, a `HookedTransformer` copies its weights.
        like: the same model with other weights and with hooks.

    Returns:
        A bridge if `like` is one, and a `HookedTransformer` otherwise.
    """
    name = base.model.name_or_path
    if isinstance(like, HookedBridge):
        bridge = boot_bridge(name, str(like.cfg.device), hf_model=base.model, tokenizer=like.tokenizer)
        bridge.cfg.n_ctx, bridge.cfg.model_name = like.cfg.n_ctx, like.cfg.model_name
        return bridge.eval()
    hooked = clone_model(like)
    weights = get_pretrained_state_dict(name, hooked.cfg, hf_model=base.model, dtype=torch.float32)
    hooked.load_and_process_state_dict(
        weights, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    return hooked
