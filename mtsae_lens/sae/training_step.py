"""The part of a training step that depends on the features: dense, over all of them, or sparse, over those that are active.

Both give the same losses and gradients, up to the rounding of sums in another order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mtsae_lens.sae.activation_interface import ActiveEntries
from mtsae_lens.sae.entries import Entries
from mtsae_lens.sae.hierarchy import decode_prefixes, nested_reconstructions, prefix_group_sizes
from mtsae_lens.sae.sparse import encode_entries
from mtsae_lens.upstream import TrainStepInput, restore_output

_MOST_DENSE = {"cpu": 0.08, "cuda": 0.02}
"""The largest share of entries for which `auto` takes the sparse step. On a CPU both steps cost the same at a share of 0.12
(`docs/performance.md`). On a GPU, where dense products are faster, nothing was measured: the margin is wider."""


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What a training step computes from the pre-activations of a batch."""

    sae_out: Float[Tensor, "row d_in"]
    prefixes: Float[Tensor, "n_groups row d_in"]
    """With nested groups, the reconstructions from the groups 0 to g; otherwise `sae_out` alone."""
    feature_acts: Float[Tensor, "row d_sae"]
    """After a sparse step a sparse matrix (COO) without a gradient, as of SAELens's `use_sparse_activations`."""
    hidden_pre: Float[Tensor, "row d_sae"]
    losses: dict[str, Tensor]
    """Those of the activation."""
    metrics: dict[str, Any]


def reconstruct(
    sae: Any,
    encoder_in: Float[Tensor, "row encoder_d_in"],
    W_enc: Float[Tensor, "encoder_d_in d_sae"],
    walls: Bool[Tensor, " row"],
    step_input: TrainStepInput,
) -> Reconstruction:
    """Compute features, reconstructions and the losses of the activation, in the way that `cfg.training_step` says.

    Args:
        sae: the SAE in training.
        encoder_in: input of the encoder.
        W_enc: its weights.
        walls: the positions that are walls.
        step_input: what SAELens gives to a training step, with `sae_in (row, d_in)`.

    Returns:
        What was computed.
    """
    hidden_pre = torch.addmm(sae.b_enc, encoder_in, W_enc)
    most = most_entries(sae, hidden_pre)
    chosen = _choose(sae, hidden_pre.detach(), ~walls, step_input, most) if most else None
    if chosen is None:
        return _reconstruct_densely(sae, hidden_pre, walls, step_input)
    hidden_pre = hidden_pre.detach()  # and with it goes the graph of the dense product
    values, loss_values = encode_entries(encoder_in, W_enc, sae.b_enc, hidden_pre, chosen)
    feature_acts = sae.activation.activate_entries(sae, values, chosen[0])
    active = ActiveEntries(~walls, chosen[0], values, feature_acts, chosen[1], loss_values)
    return _reconstruct_sparsely(sae, active, hidden_pre, step_input)


def most_entries(sae: Any, hidden_pre: Float[Tensor, "row d_sae"]) -> int:
    """Return the largest number of entries of the pre-activations for which the step is sparse; 0 for none.

    A hook on the features needs all of them, so it makes the step dense, as an activation does that has no sparse step.

    Args:
        sae: the SAE in training.
        hidden_pre: its pre-activations.

    Returns:
        A number of entries.
    """
    way = sae.cfg.training_step
    if way == "dense" or not sae.activation.has_sparse_step or has_hooks(sae.hook_sae_acts_pre, sae.hook_sae_acts_post):
        return 0
    return int((1.0 if way == "sparse" else largest_share(hidden_pre.device)) * hidden_pre.numel())


def largest_share(device: torch.device) -> float:
    """Return the largest share of entries for which a sparse step is faster on a device; 0 where nothing is known."""
    return _MOST_DENSE.get(device.type, 0.0)


def has_hooks(*modules: torch.nn.Module) -> bool:
    """Return whether a hook is on any of the modules."""
    return any(m._forward_hooks or m._backward_hooks or m._forward_pre_hooks or m._backward_pre_hooks for m in modules)


def _choose(
    sae: Any, hidden_pre: Tensor, kept: Tensor, step_input: TrainStepInput, most: int
) -> tuple[Entries, Entries] | None:
    """Find the active entries, and those that the losses depend on besides; None if there are too many."""
    active = sae.activation.find_entries(sae, hidden_pre, kept, most)
    if active is None:
        return None
    further = sae.activation.find_loss_entries(sae, step_input, hidden_pre, kept)
    if further is None:
        return active, active.where(slice(0))
    return (active, further) if len(active) + len(further) <= most else None


def _reconstruct_densely(sae: Any, hidden_pre: Tensor, walls: Tensor, step_input: TrainStepInput) -> Reconstruction:
    hidden_pre = sae.hook_sae_acts_pre(hidden_pre)
    feature_acts = sae.features_from_pre_activations(hidden_pre, walls)
    sae_out = restore_output(sae, sae.hook_sae_recons(feature_acts @ sae.W_dec + sae.b_dec))
    sizes = prefix_group_sizes(sae.cfg)
    prefixes = sae_out[None] if len(sizes) == 1 else nested_reconstructions(feature_acts, sae.W_dec, sae.b_dec, sizes)
    kept = ~walls if walls.any() else slice(None)  # selecting all rows would copy them
    kept_input = replace(step_input, sae_in=step_input.sae_in[kept])
    losses = sae.calculate_aux_loss(kept_input, feature_acts[kept], hidden_pre[kept], sae_out[kept])
    metrics = sae.activation.after_training_step(sae, feature_acts)
    return Reconstruction(sae_out, prefixes, feature_acts, hidden_pre, losses, metrics)


def _reconstruct_sparsely(sae: Any, active: ActiveEntries, hidden_pre: Tensor, step_input: TrainStepInput) -> Reconstruction:
    sizes = prefix_group_sizes(sae.cfg)
    prefixes = decode_prefixes(active.feature_acts, active.entries, sae.W_dec, sae.b_dec, sizes)
    sae_out = restore_output(sae, sae.hook_sae_recons(prefixes[-1]))
    if len(sizes) == 1:
        prefixes = sae_out[None]
    losses = sae.activation.entry_losses(sae, step_input, active, sae_out)
    metrics = sae.activation.after_training_step(sae, active.feature_acts)
    feature_acts = active.entries.to_matrix(active.feature_acts)
    return Reconstruction(sae_out, prefixes, feature_acts, hidden_pre, losses, metrics)
