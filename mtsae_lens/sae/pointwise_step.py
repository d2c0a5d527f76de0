"""A sparse training step for SAELens's own TopK and BatchTopK SAEs: the same losses and gradients, from the active features alone.

    p    = (x - b_dec) @ W_enc + b_enc                       dense: it decides which features are active
    S    = the k largest of p |W_dec|, those above zero      of each row, or of the batch
    x^   = p_S @ W_dec + b_dec

With `rescale_acts_by_decoder_norm` SAELens multiplies p by the norms of the decoder rows, chooses, and divides again, so the norms decide
which features are active and nothing else: their gradient is zero. Only sums are rounded in another order than in SAELens's step.
"""

from __future__ import annotations

from typing import Any

import torch
from sae_lens import BatchTopKTrainingSAE, TopKTrainingSAE, TrainingSAE
from torch import Tensor

from mtsae_lens.sae.entries import Entries
from mtsae_lens.sae.largest import largest_entries, largest_of_rows
from mtsae_lens.sae.sparse import decode_entries, encode_entries
from mtsae_lens.sae.training_step import has_hooks, largest_share
from mtsae_lens.upstream import TrainStepInput, TrainStepOutput

_CLASSES = (TopKTrainingSAE, BatchTopKTrainingSAE)
"""Not their subclasses, which may compute something else, as the Matryoshka SAE does."""
_UNCHANGED = ("none", "expected_average_only_in")
"""Values of `normalize_activations` with which the SAE reads its input as it is; the scale of training is applied before."""


def take_sparse_step(sae: TrainingSAE[Any], step_input: TrainStepInput) -> TrainStepOutput | None:
    """Compute what `sae.training_forward_pass` does, from the active features alone, where that is exact and pays.

    Args:
        sae: the SAE in training, of any architecture.
        step_input: what SAELens gives to a training step.

    Returns:
        The output; `feature_acts` is a sparse matrix (COO), and neither it nor `hidden_pre` has a gradient. None for an SAE of another class,
        with hooks, a replaced step (`compile_sae`), another precision than float32 or a normalization of its input, and where too many
        features are active: take SAELens's step.
    """
    x = step_input.sae_in
    if not _is_eligible(sae, x):
        return None
    most = int(largest_share(x.device) * len(x) * sae.cfg.d_sae)
    if int(sae.cfg.k * len(x)) > most:
        return None
    with torch.no_grad():
        encoder_in = x - sae.b_dec * sae.cfg.apply_b_dec_to_input
        hidden_pre = torch.addmm(sae.b_enc, encoder_in, sae.W_enc)
        norms = sae.W_dec.norm(dim=-1) if sae.cfg.rescale_acts_by_decoder_norm else None
        compared = hidden_pre if norms is None else hidden_pre * norms
        active = _find_active(sae, compared)
        dead = _find_dead(sae, compared, step_input.dead_neuron_mask)
    if len(active) + len(dead) > most:
        return None
    b_enc = sae.b_enc
    if sae.cfg.apply_b_dec_to_input:  # a bias of the same value, by which the gradient of the encoder's input reaches `b_dec`
        b_enc = b_enc + (sae.b_dec.detach() - sae.b_dec) @ sae.W_enc.detach()
    values, dead_values = encode_entries(encoder_in, sae.W_enc, b_enc, hidden_pre, (active, dead))
    sae_out = decode_entries(values, active, sae.W_dec) + sae.b_dec
    losses = {
        "mse_loss": sae.mse_loss_fn(sae_out, x).sum(dim=-1).mean(),
        "auxiliary_reconstruction_loss": _aux_loss(sae, dead_values, dead, (x - sae_out).detach(), step_input.dead_neuron_mask),
    }
    feature_acts = values.detach() if norms is None else values.detach() * norms[active.feature]
    metrics: dict[str, Any] = {}
    if isinstance(sae, BatchTopKTrainingSAE):
        sae.update_topk_threshold(feature_acts)
        metrics["topk_threshold"] = sae.topk_threshold
    return TrainStepOutput(
        sae_in=x,
        sae_out=sae_out,
        feature_acts=active.to_matrix(feature_acts),
        hidden_pre=compared,
        loss=torch.stack(list(losses.values())).sum(),
        losses=losses,
        metrics=metrics,
    )


def _is_eligible(sae: TrainingSAE[Any], x: Tensor) -> bool:
    cfg = sae.cfg
    return (
        type(sae) in _CLASSES
        and not cfg.use_sparse_activations
        and cfg.normalize_activations in _UNCHANGED
        and cfg.reshape_activations == "none"
        and x.ndim == 2
        and x.dtype == sae.W_enc.dtype == torch.float32
        and not torch.is_autocast_enabled(x.device.type)
        and not torch.compiler.is_compiling()
        and not has_hooks(*sae.modules())
        and "training_forward_pass" not in vars(sae)  # a compiled step is one that was asked for
    )


def _find_active(sae: Any, compared: Tensor) -> Entries:
    shape = (compared.shape[0], compared.shape[1])
    if isinstance(sae, BatchTopKTrainingSAE):
        return Entries.of_flat(largest_entries(compared, int(sae.cfg.k * len(compared))), shape)
    features = largest_of_rows(compared, sae.cfg.k)
    return Entries.of_features(features, ~(compared.gather(-1, features) <= 0), sae.cfg.d_sae)  # a NaN must not vanish


def _find_dead(sae: Any, compared: Tensor, dead: Tensor | None) -> Entries:
    """Find the dead features of each row that learn the residual (AuxK, Gao et al. 2024, appendix B.1)."""
    features = torch.arange(0) if dead is None else dead.nonzero().squeeze(-1)
    if not len(features):
        return Entries.of_mask(torch.zeros((), dtype=torch.bool, device=compared.device).expand(compared.shape))
    chosen = largest_of_rows(compared[:, features], min(max(1, sae.cfg.d_in // 2), len(features)))
    return Entries.of_features(features[chosen], torch.ones_like(chosen, dtype=torch.bool), sae.cfg.d_sae)


def _aux_loss(sae: Any, values: Tensor, entries: Entries, residual: Tensor, dead: Tensor | None) -> Tensor:
    if dead is None or not len(entries):
        return residual.new_tensor(0.0)
    scale = min(int(dead.sum()) / (sae.cfg.d_in // 2), 1.0)
    errors = decode_entries(values, entries, sae.W_dec) - residual
    loss: Tensor = sae.cfg.aux_loss_coefficient * scale * errors.pow(2).sum(dim=-1).mean()
    return loss
