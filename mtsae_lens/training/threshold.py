"""Set the threshold of a trained BatchTopK SAE whose decoder has memory.

In training a batch holds mixed rows, whose past is an estimate, and the threshold follows the smallest activation that a batch keeps. In the
true recursion a reconstruction that is a little worse leaves more to code, so more features exceed that threshold than `k` a position. So
after training the threshold is searched at which `k` features are active on average, with the recursion that inference runs.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from sae_lens import TrainingSAE
from torch import Tensor

from mtsae_lens.sae.activation_interface import state_tensor
from mtsae_lens.sae.config import MTSAEConfig
from mtsae_lens.sae.mtsae import MTSAE
from mtsae_lens.sae.training import MTTrainingSAE

_N_HALVINGS = 16
"""How often the interval that holds the threshold is halved: to 1/65,536 of it."""


def needs_threshold(sae: TrainingSAE[Any]) -> bool:
    """Return whether the threshold of an SAE must be set after training: that of a BatchTopK SAE whose decoder has memory."""
    return isinstance(sae, MTTrainingSAE) and sae.has_memory and sae.activation.name == "batchtopk"


@torch.no_grad()
def set_threshold_(sae: MTTrainingSAE, h: Float[Tensor, "batch pos d_in"]) -> None:
    """Set the threshold for inference, in place, so that `k` features are active at a position on average.

        k = mean over positions of sum_i [e_i > threshold]         with e of the true recursion at that threshold

    It is found by halving an interval, because a higher threshold leaves fewer features active.

    Args:
        sae: a trained SAE for which `needs_threshold` holds, with the scale of its activations folded in.
        h: contexts that it was trained on, zero at masked positions.
    """
    flat = {"reshape_activations": "none"}  # the heads of `h` lie side by side already
    inference = MTSAE(MTSAEConfig.from_dict(sae.cfg.get_inference_sae_cfg_dict() | flat)).to(sae.device)
    weights = sae.state_dict()
    sae.process_state_dict_for_saving_inference(weights)
    inference.load_state_dict(weights)
    h = h.to(sae.device)
    n_positions = int((~inference.read_contexts(h)[1]).sum())

    def l0(threshold: float) -> float:
        inference.threshold.fill_(threshold)
        return int((inference.encode(h) > 0).sum()) / max(n_positions, 1)

    threshold = state_tensor(sae, "topk_threshold")
    low, high = 0.0, max(float(threshold), torch.finfo(torch.float32).eps)
    while l0(high) > sae.cfg.k:
        low, high = high, 2 * high
    for _ in range(_N_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if l0(middle) > sae.cfg.k else (low, middle)
    threshold.fill_(high)
