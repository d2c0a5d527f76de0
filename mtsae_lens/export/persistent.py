"""Imitation of an edit in the weights: directions projected out of all that is written to the residual stream before the hook.

A hook takes directions out of h, the residual stream that it meets: `h' = h - (1 + m) B^T B (h - c)`. In weights, the same map is applied
to every term whose sum h is:

    h = W_E[token] + W_pos[position] + sum over layers before the hook of (attention W_O + b_O) + (MLP W_out + b_out)
    W -> W (1 - (1 + m) B^T B) for each of them, and (1 + m) B^T B c added to W_E

This is the hook's edit exactly where nothing before the hook reads the stream: at `blocks.0.hook_resid_pre`. Elsewhere the earlier
layers read a stream that lacks the directions too, so they write something else; how much is measured, not assumed. There is no gate in
weights: the projection is always on, at special tokens too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mtsae_lens.export.base_models import BaseModel, hooked_layer
from mtsae_lens.splice.edits import DirectionEdit


@torch.no_grad()
def project_weights(base: BaseModel, edit: DirectionEdit, hook_name: str) -> None:
    """Apply the map of an edit, in place, to all that is written to the residual stream before a hook.

    Args:
        base: the model to change.
        edit: the directions to remove; its gate is ignored.
        hook_name: a hook of the residual stream.

    Raises:
        ModelError: the hook is not one of the residual stream.
    """
    layer, side = hooked_layer(hook_name)
    device = base.model.device
    basis, center = edit.basis.to(device, torch.float32), edit.center.to(device, torch.float32)
    change = -(1 + edit.multiplier) * basis.T @ basis
    _untie(base)
    for number, name in enumerate(base.family.embeddings):
        weight = base.model.get_submodule(name).weight
        weight.copy_(_mapped(weight, change) - (center @ change if number == 0 else 0.0))
    for writer in _writers(base, layer + (side == "post")):
        rows = writer.weight if isinstance(writer, Conv1D) else writer.weight.T  # (d_in, d_model)
        rows.copy_(_mapped(rows, change))
        if writer.bias is not None:
            writer.bias.copy_(_mapped(writer.bias, change))


def _mapped(rows: Float[Tensor, "*row d_model"], change: Float[Tensor, "d_model d_model"]) -> Tensor:
    """Compute `rows (1 + change)`."""
    return rows + (rows.float() @ change).to(rows.dtype)


def _writers(base: BaseModel, n_layers: int) -> Iterator[Any]:
    for layer in list(base.layers)[:n_layers]:
        yield layer.get_submodule(base.family.attention_out)
        yield layer.get_submodule(base.family.mlp_out)


def _untie(base: BaseModel) -> None:
    """Give the unembedding its own weights where it shares those of the embedding: it reads the stream and does not write to it."""
    if base.model.config.tie_word_embeddings:
        head = base.model.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach().clone())
        base.model.config.tie_word_embeddings = False
