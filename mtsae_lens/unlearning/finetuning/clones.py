"""Clone a model to give it other weights."""

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
    """Return a copy of a model: the same weights in separate memory, the same tokenizer, no hooks, and `requires_grad` off.

    Args:
        model: a `HookedTransformer` or a bridge, which is not changed.
        dtype: dtype of the clone; None for that of the model.

    Raises:
        ModelError: SAEs are attached to the model.
    """
    if model.acts_to_saes:
        raise ModelError(
            f"expected a model without SAEs, got SAEs attached at {', '.join(model.acts_to_saes)}; remove them with model.reset_saes()"
        )
    clone = _clone_bridge(model, dtype) if isinstance(model, HookedBridge) else _clone_hooked(model, dtype)
    clone.train(model.training)
    for parameter in clone.parameters():
        parameter.requires_grad_(False)
    return clone


def _clone_bridge(model: HookedBridge, dtype: torch.dtype | None) -> HookedBridge:
    shared: dict[int, Any] = {id(model.tokenizer): model.tokenizer}
    for module in model.modules():  # attention keeps its last pattern, and a tensor with a gradient's graph cannot be copied
        shared |= {
            id(value): value.detach() for value in vars(module).values() if isinstance(value, Tensor) and not value.is_leaf
        }
    clone = copy.deepcopy(model, shared)
    clone.reset_hooks(including_permanent=True)
    if dtype is not None:
        nn.Module.to(clone, dtype)
        clone.cfg.dtype = dtype
    return clone


def _clone_hooked(model: HookedSAETransformer, dtype: torch.dtype | None) -> HookedSAETransformer:
    """Construct a new model with the same weights.

    `copy.deepcopy` does not copy completely: SAELens wraps the forward function of every MLP in a closure that a deep copy shares, so the
    copy would go on using the MLPs of the original.
    """
    cfg = copy.deepcopy(model.cfg)
    init_weights, tokenizer_name = cfg.init_weights, cfg.tokenizer_name
    cfg.init_weights = False  # the weights are copied, and drawing random ones would advance the global random state
    cfg.tokenizer_name = None  # otherwise the tokenizer would be loaded again
    cfg.dtype = dtype or cfg.dtype
    clone = HookedSAETransformer(cfg, move_to_device=False)
    nn.Module.to(clone, cfg.device)  # TransformerLens's own `to` prints
    clone.cfg.init_weights, clone.cfg.tokenizer_name, clone.tokenizer = init_weights, tokenizer_name, model.tokenizer
    clone.load_state_dict(model.state_dict())
    return clone


def clone_to_train(model: AnyHookedModel) -> AnyHookedModel:
    """Clone a model in at least float32: in half precision, updates smaller than the spacing of the weights would be lost.

    Args:
        model: the model, which is not changed.

    Raises:
        ModelError: see `clone_model`.
    """
    return clone_model(model, torch.promote_types(model.cfg.dtype, torch.float32))


@torch.no_grad()
def set_weights(model: AnyHookedModel, weights: Mapping[str, Tensor]) -> None:
    """Copy values into the parameters of a model, in place.

    Args:
        model: the model.
        weights: values by parameter name; other parameters are kept.
    """
    parameters = dict(model.named_parameters())
    for name, value in weights.items():
        parameters[name].copy_(value)
