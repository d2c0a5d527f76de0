"""Imitate an edit in the weights by projecting directions out of everything that is written to the residual stream before the hook.

A hook removes directions from the residual stream h at its place: `h' = h - (1 + m) B^T B (h - c)`. In the weights, the same map is
applied to every term of the sum h:

    h = W_E[token] + W_pos[position] + sum over layers before the hook of (attention W_O + b_O) + (MLP W_out + b_out)
    W -> W (1 - (1 + m) B^T B) for each of them, and (1 + m) B^T B c added to W_E

The result equals the hook's edit only if nothing before the hook reads the stream, that is at `blocks.0.hook_resid_pre`. At other
hooks, the earlier layers read a stream without the directions, so they write something else; the difference is measured, not assumed.
Weights have no gate: the projection is always active, at special tokens too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mtsae_lens.export.base_models import BaseModel, hooked_layer
from mtsae_lens.splice.direction_edits import DirectionEdit


@torch.no_grad()
def project_weights(base: BaseModel, edit: DirectionEdit, hook_name: str) -> None:
    """Apply the map of an edit, in place, to everything that is written to the residual stream before a hook.

    Args:
        base: the model to change.
        edit: the directions to remove; its gate is ignored.
        hook_name: a hook of the residual stream.

    Raises:
        ModelError: the hook is not a hook of the residual stream.
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
    """Separate the unembedding from the embedding if they share weights, because the unembedding does not write to the stream."""
    if base.model.config.tie_word_embeddings:
        head = base.model.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach().clone())
        base.model.config.tie_word_embeddings = False
