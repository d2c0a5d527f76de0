"""Clone a model to give it other weights, and keep such weights in a file."""

from __future__ import annotations

import copy
from functools import reduce
from pathlib import Path

import torch
from sae_lens import HookedSAETransformer
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mtsae_lens.errors import DataError, ModelError
from mtsae_lens.files import write_bytes


@torch.no_grad()
def clone_model(model: HookedSAETransformer, dtype: torch.dtype | None = None) -> HookedSAETransformer:
    """Return a copy of a model: the same weights in separate memory, the same tokenizer, no hooks, and `requires_grad` off.

    The clone is newly constructed, because `copy.deepcopy` does not copy completely: SAELens wraps the forward function of every MLP in
    a closure that a deep copy shares, so the copy would go on using the MLPs of the original.

    Args:
        model: the model, which is not changed.
        dtype: dtype of the clone; None for that of the model.

    Raises:
        ModelError: the model is a bridge, whose weights belong to a Hugging Face model; or SAEs are attached to it.
    """
    if not isinstance(model, HookedSAETransformer):
        raise ModelError(
            f"expected a HookedSAETransformer to change its weights, got a {type(model).__name__}; load it without 'bridge:'"
        )
    if model.acts_to_saes:
        raise ModelError(
            f"expected a model without SAEs, got SAEs attached at {', '.join(model.acts_to_saes)}; remove them with model.reset_saes()"
        )
    cfg = copy.deepcopy(model.cfg)
    init_weights, tokenizer_name = cfg.init_weights, cfg.tokenizer_name
    cfg.init_weights = False  # the weights are copied, and drawing random ones would advance the global random state
    cfg.tokenizer_name = None  # otherwise the tokenizer would be loaded again
    cfg.dtype = dtype or cfg.dtype
    clone = HookedSAETransformer(cfg, move_to_device=False)
    nn.Module.to(clone, cfg.device)  # TransformerLens's own `to` prints
    clone.cfg.init_weights, clone.cfg.tokenizer_name, clone.tokenizer = init_weights, tokenizer_name, model.tokenizer
    clone.load_state_dict(model.state_dict())
    clone.train(model.training)
    for parameter in clone.parameters():
        parameter.requires_grad_(False)
    return clone


def clone_to_train(model: HookedSAETransformer) -> HookedSAETransformer:
    """Clone a model in at least float32: in half precision, updates smaller than the spacing of the weights would be lost.

    Args:
        model: the model, which is not changed.

    Raises:
        ModelError: see `clone_model`.
    """
    return clone_model(model, torch.promote_types(model.cfg.dtype, torch.float32))


def save_weights(path: Path, model: HookedSAETransformer) -> None:
    """Write every parameter under its name to a safetensors file, whole or not at all.

    Args:
        path: the file.
        model: the model.

    Raises:
        OutputError: the file cannot be written.
    """
    write_bytes(path, save({name: value.detach().cpu().contiguous() for name, value in model.named_parameters()}))


@torch.no_grad()
def load_weights(path: Path, like: HookedSAETransformer) -> HookedSAETransformer:
    """Return a clone of `like` with the weights in a file that `save_weights` wrote, in the dtype of the file.

    Args:
        path: the file.
        like: a model of the same architecture.

    Raises:
        DataError: the file does not exist, or is not a safetensors file.
        ModelError: the weights belong to a different model.
    """
    try:
        weights = load_file(path)
    except OSError as error:
        raise DataError(
            f"{path}: expected a readable file, got the error {error.strerror or error}; check its path and permissions"
        ) from error
    except SafetensorError as error:
        raise DataError(f"{path}: expected a safetensors file, got {error}; give one that save_weights wrote") from error
    expected = {name: tuple(value.shape) for name, value in like.named_parameters()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if found != expected:
        differing = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
        raise ModelError(
            f"{path}: expected the weights of {like.cfg.model_name} with {differing[0]} of shape {expected.get(differing[0])}, got "
            f"{found.get(differing[0])}; give the weights of this model"
        )
    model = clone_model(like, reduce(torch.promote_types, (value.dtype for value in weights.values())))
    set_weights(model, weights)
    return model


@torch.no_grad()
def set_weights(model: HookedSAETransformer, weights: dict[str, Tensor]) -> None:
    """Copy values into the parameters of a model, in place.

    Args:
        model: the model.
        weights: values by parameter name; other parameters are kept.
    """
    parameters = dict(model.named_parameters())
    for name, value in weights.items():
        parameters[name].copy_(value)
