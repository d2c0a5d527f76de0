"""Reduce an SAE's encoder to plain tensors and a few settings, which is all that the stand-alone loader reads.

Every causal encoder is the same computation, that of `mtsae_lens.export.standalone`: an encoder that reads the token alone has one
scale whose filter is 1.
"""

from __future__ import annotations

from typing import Any

import torch
from sae_lens import SAE, JumpReLUSAE, StandardSAE, TopKSAE
from torch import Tensor

from mtsae_lens.errors import ModelError
from mtsae_lens.sae.activation_interface import ACTIVATIONS
from mtsae_lens.sae.mtsae import MTSAE
from mtsae_lens.splice.hook_checks import check_one_hook

_PLAIN: dict[type[SAE[Any]], str] = {StandardSAE: "relu", TopKSAE: "topk", JumpReLUSAE: "jumprelu"}
"""BatchTopK and Matryoshka SAEs are saved as JumpReLU SAEs with a fixed threshold."""


@torch.no_grad()
def reduce_encoder(sae: SAE[Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reduce an SAE to the tensors and settings from which `mtsae_lens.export.standalone` computes its features.

    Args:
        sae: the SAE.

    Returns:
        Tensors: `filters (n_scales, n_reads, d_in)`, `W_enc (n_scales * d_in, d_sae)`, `b_enc (d_sae,)`, `W_dec (d_sae, d_in)`, `b_in
            (d_in,)`, `b_dec (d_in,)`, `W_context ((n_scales - 1) * d_in, context_rank)` for an encoder of that rank, whose `W_enc` is
            `(d_in + context_rank, d_sae)`, and `threshold (d_sae,)` for JumpReLU. Settings: `offsets`, `scale_norm`, `context_gain`,
            `activation`, `k`.

    Raises:
        ConfigError: the SAE is a transcoder.
        ModelError: the architecture is not supported, the encoder reads later positions, or each input is normalized separately.
    """
    check_one_hook(sae)
    if sae.cfg.normalize_activations not in ("none", "expected_average_only_in"):
        raise ModelError(
            "expected an SAE with normalize_activations='none' (the norm folded into the weights) to export, got "
            f"{sae.cfg.normalize_activations!r}; train an SAE with 'none'"
        )
    if isinstance(sae, MTSAE):
        tensors, settings = _temporal(sae)
    elif type(sae) in _PLAIN:
        tensors, settings = _plain(sae)
    else:
        raise ModelError(
            "expected an SAE of architecture mtsae, standard, topk, batchtopk or jumprelu to export, got "
            f"{sae.cfg.architecture()!r}; train one of these"
        )
    tensors["b_in"] = sae.b_dec * float(sae.cfg.apply_b_dec_to_input)
    tensors["b_dec"] = sae.b_dec
    return {name: tensor.detach().cpu().float().contiguous().clone() for name, tensor in tensors.items()}, settings


def _temporal(sae: MTSAE) -> tuple[dict[str, Tensor], dict[str, Any]]:
    cfg = sae.cfg
    if cfg.padding != "causal":
        raise ModelError(
            f"expected a causal encoder to export, got padding={cfg.padding!r}, which reads later positions; train an SAE with "
            "padding='causal'"
        )
    if sae.has_memory:
        raise ModelError(
            "expected an SAE without memory in its decoder, got memory='predictive', a recursion that an exported model cannot run; "
            "train one with memory='none'"
        )
    tensors = {"filters": sae.filters, "W_enc": sae.W_enc, "b_enc": sae.b_enc, "W_dec": sae.W_dec}
    if cfg.context_rank is not None:
        tensors["W_context"] = sae.W_context
    settings = {
        "offsets": sae.read_offsets,
        "scale_norm": cfg.scale_norm,
        "context_gain": cfg.context_gain,
    }
    more_tensors, more_settings = sae.activation.export(sae)
    return tensors | more_tensors, settings | more_settings


def _plain(sae: SAE[Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reduce a SAELens SAE; if it scales pre-activations by the decoder norms, fold the norms into the weights."""
    norms = torch.ones_like(sae.W_dec[:, 0])
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        norms = sae.W_dec.norm(dim=-1)
    tensors = {
        "filters": torch.ones(1, 1, sae.cfg.d_in),
        "W_enc": sae.W_enc * norms,
        "b_enc": sae.b_enc * norms,  # type: ignore[operator]
        "W_dec": sae.W_dec / norms.unsqueeze(-1),
    }
    more_tensors, more_settings = ACTIVATIONS[_PLAIN[type(sae)]].export(sae)
    settings: dict[str, Any] = {"offsets": [0], "scale_norm": "none", "context_gain": 1.0}
    return tensors | more_tensors, settings | more_settings
