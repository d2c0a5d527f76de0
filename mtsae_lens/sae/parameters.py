"""The parameters of an MTSAE, all zero: SAELens's base class would create a `W_enc` of another shape."""

from __future__ import annotations

from typing import Any

import torch
from sae_lens import TrainingSAE
from torch import nn


def create_parameters(sae: Any) -> None:
    """Create all parameters, and the tensors that the activation keeps.

    Args:
        sae: a `TemporalEncoder` whose configuration and activation are set.
    """
    cfg, like = sae.cfg, {"dtype": sae.dtype, "device": sae.device}
    n_scales = len(cfg.dilations)
    sae.taps = nn.Parameter(torch.zeros(n_scales, cfg.kernel_size, cfg.d_in, **like))
    if cfg.learn_dilations:
        sae.log2_dilations = nn.Parameter(torch.tensor(cfg.dilations, **like).clamp(min=1).log2())
    encoder_d_in = n_scales * cfg.d_in
    if cfg.context_rank is not None:
        sae.W_context = nn.Parameter(torch.zeros((n_scales - 1) * cfg.d_in, cfg.context_rank, **like))
        encoder_d_in = cfg.d_in + cfg.context_rank
    if cfg.memory == "predictive":
        rank = min(cfg.memory_rank, cfg.d_in)
        sae.W_memory_in = nn.Parameter(torch.zeros(cfg.n_memory_reads * cfg.d_in, rank, **like))
        sae.W_memory_out = nn.Parameter(torch.zeros(rank, cfg.d_in, **like))
    sae.W_enc = nn.Parameter(torch.zeros(encoder_d_in, cfg.d_sae, **like))
    sae.b_enc = nn.Parameter(torch.zeros(cfg.d_sae, **like))
    sae.W_dec = nn.Parameter(torch.zeros(cfg.d_sae, sae.decoded_width, **like))
    sae.b_dec = nn.Parameter(torch.zeros(sae.decoded_width, **like))
    for name, spec in sae.activation.state(cfg, training=isinstance(sae, TrainingSAE)).items():
        shape = (cfg.d_sae,) if spec.per_feature else ()
        tensor = torch.full(shape, spec.start, dtype=spec.dtype or sae.dtype, device=sae.device)
        if spec.learned:
            sae.register_parameter(name, nn.Parameter(tensor))
        else:
            sae.register_buffer(name, tensor)


def keep_dtypes(sae: Any) -> None:
    """Give the tensors of the activation the dtype that they must have, after the weights were moved or cast.

    Args:
        sae: a `TemporalEncoder`.
    """
    for name, spec in sae.activation.state(sae.cfg, training=isinstance(sae, TrainingSAE)).items():
        tensor = getattr(sae, name)
        if spec.dtype is not None and tensor.dtype != spec.dtype:
            tensor.data = tensor.data.to(spec.dtype)
