"""Copies of a model that may be given other weights, and such weights in a file."""

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
    """Return a model with the same weights in memory of its own, the same tokenizer, and no hooks; no parameter requires a gradient.

    It is built anew, because `copy.deepcopy` does not copy: SAELens wraps the forward function of every MLP in a closure, which a deep
    copy shares, so that the copy would go on using the MLPs of the original.

    Args:
        model: is left as it is.
        dtype: of the clone; None for the model's own.

    Raises:
        ModelError: a bridge, whose weights are Hugging Face's; or SAEs are attached to the model.
    """
    if not isinstance(model, HookedSAETransformer):
        raise ModelError(
            f"weights are changed in a HookedSAETransformer; got a {type(model).__name__}: load it without 'bridge:'"
        )
    if model.acts_to_saes:
        raise ModelError(
            f"SAEs are attached to the model at {', '.join(model.acts_to_saes)}; take them off with model.reset_saes()"
        )
    cfg = copy.deepcopy(model.cfg)
    init_weights, tokenizer_name = cfg.init_weights, cfg.tokenizer_name
    cfg.init_weights = False  # the weights come from the model, and drawing others would move the global random state
    cfg.tokenizer_name = None  # or it would be loaded again
    cfg.dtype = dtype or cfg.dtype
    twin = HookedSAETransformer(cfg, move_to_device=False)
    nn.Module.to(twin, cfg.device)  # TransformerLens's own `to` prints
    twin.cfg.init_weights, twin.cfg.tokenizer_name, twin.tokenizer = init_weights, tokenizer_name, model.tokenizer
    twin.load_state_dict(model.state_dict())
    twin.train(model.training)
    for parameter in twin.parameters():
        parameter.requires_grad_(False)
    return twin


def clone_to_train(model: HookedSAETransformer) -> HookedSAETransformer:
    """Clone a model in float32 at least: in half precision an update below half the spacing of the weights is lost.

    Raises:
        ModelError: as `clone_model`.
    """
    return clone_model(model, torch.promote_types(model.cfg.dtype, torch.float32))


def save_weights(path: Path, model: HookedSAETransformer) -> None:
    """Write every parameter under its name as safetensors, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    write_bytes(path, save({name: value.detach().cpu().contiguous() for name, value in model.named_parameters()}))


@torch.no_grad()
def load_weights(path: Path, like: HookedSAETransformer) -> HookedSAETransformer:
    """Return a clone of `like` with the weights of a file that `save_weights` wrote, in the file's dtype.

    Raises:
        DataError: no such file, or none in this format.
        ModelError: the weights are those of another model.
    """
    try:
        weights = load_file(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise DataError(f"{path}: not a safetensors file ({error}); needed one that save_weights wrote") from error
    expected = {name: tuple(value.shape) for name, value in like.named_parameters()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if found != expected:
        differing = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
        raise ModelError(
            f"{path}: the weights of another model than {like.cfg.model_name}: {differing[0]} has shape {found.get(differing[0])}, "
            f"needed {expected.get(differing[0])}"
        )
    model = clone_model(like, reduce(torch.promote_types, (value.dtype for value in weights.values())))
    set_weights(model, weights)
    return model


@torch.no_grad()
def set_weights(model: HookedSAETransformer, weights: dict[str, Tensor]) -> None:
    """Give a model these values of the parameters that they name, in place."""
    parameters = dict(model.named_parameters())
    for name, value in weights.items():
        parameters[name].copy_(value)
