"""Copies of a model that may be given other weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from sae_lens import HookedSAETransformer
from torch import Tensor, nn

from mtsae_lens.data.bridges import AnyHookedModel, HookedBridge
from mtsae_lens.errors import ModelError


@torch.no_grad()
def clone_model(model: AnyHookedModel, dtype: torch.dtype | None = None) -> AnyHookedModel:
    """Return a model with the same weights in memory of its own, the same tokenizer, and no hooks; no parameter requires a gradient.

    Args:
        model: a `HookedTransformer` or a bridge; it is left as it is.
        dtype: of the clone; None for the model's own.

    Raises:
        ModelError: SAEs are attached to the model.
    """
    if model.acts_to_saes:
        raise ModelError(
            f"SAEs are attached to the model at {', '.join(model.acts_to_saes)}; take them off with model.reset_saes()"
        )
    twin = _clone_bridge(model, dtype) if isinstance(model, HookedBridge) else _clone_hooked(model, dtype)
    twin.train(model.training)
    for parameter in twin.parameters():
        parameter.requires_grad_(False)
    return twin


def _clone_bridge(model: HookedBridge, dtype: torch.dtype | None) -> HookedBridge:
    shared: dict[int, Any] = {id(model.tokenizer): model.tokenizer}
    for module in model.modules():  # attention keeps its last pattern, and a tensor with a gradient's graph cannot be copied
        shared |= {
            id(value): value.detach() for value in vars(module).values() if isinstance(value, Tensor) and not value.is_leaf
        }
    twin = copy.deepcopy(model, shared)
    twin.reset_hooks(including_permanent=True)
    if dtype is not None:
        nn.Module.to(twin, dtype)
        twin.cfg.dtype = dtype
    return twin


def _clone_hooked(model: HookedSAETransformer, dtype: torch.dtype | None) -> HookedSAETransformer:
    """Build the model anew.

    `copy.deepcopy` does not copy it: SAELens wraps the forward function of every MLP in a closure, which a deep copy shares, so that the copy
    would go on using the MLPs of the original.
    """
    cfg = copy.deepcopy(model.cfg)
    init_weights, tokenizer_name = cfg.init_weights, cfg.tokenizer_name
    cfg.init_weights = False  # the weights come from the model, and drawing others would move the global random state
    cfg.tokenizer_name = None  # or it would be loaded again
    cfg.dtype = dtype or cfg.dtype
    twin = HookedSAETransformer(cfg, move_to_device=False)
    nn.Module.to(twin, cfg.device)  # TransformerLens's own `to` prints
    twin.cfg.init_weights, twin.cfg.tokenizer_name, twin.tokenizer = init_weights, tokenizer_name, model.tokenizer
    twin.load_state_dict(model.state_dict())
    return twin


def clone_to_train(model: AnyHookedModel) -> AnyHookedModel:
    """Clone a model in float32 at least: in half precision an update below half the spacing of the weights is lost.

    Raises:
        ModelError: as `clone_model`.
    """
    return clone_model(model, torch.promote_types(model.cfg.dtype, torch.float32))


@torch.no_grad()
def set_weights(model: AnyHookedModel, weights: Mapping[str, Tensor]) -> None:
    """Give a model these values of the parameters that they name, in place."""
    parameters = dict(model.named_parameters())
    for name, value in weights.items():
        parameters[name].copy_(value)
