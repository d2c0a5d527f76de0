"""Set the threshold of a trained BatchTopK SAE whose decoder has memory.

In training a batch holds mixed rows, whose past is an estimate, and the threshold follows the smallest activation that a batch keeps. In the
true recursion a reconstruction that is a little worse leaves more to code, so more features exceed that threshold than `k` a position. So
after training the threshold is searched at which `k` features are active on average, with the recursion that inference runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import TrainingSAE
from torch import Tensor

from mtsae_lens.sae.activation_interface import state_tensor
from mtsae_lens.sae.config import MTSAEConfig
from mtsae_lens.sae.mtsae import MTSAE
from mtsae_lens.sae.training import MTTrainingSAE

_N_HALVINGS = 12
"""How often the interval that holds the threshold is halved: to 1/4,096 of it."""
_N_POSITIONS = 16_384
"""Number of positions that the threshold is searched on. On 1,024 positions of a few documents, 11 features were active on other text for a k
of 8."""
_N_AT_ONCE = 4_096
"""Number of positions that are encoded at once."""


def needs_threshold(sae: TrainingSAE[Any]) -> bool:
    """Return whether the threshold of an SAE must be set after training: that of a BatchTopK SAE whose decoder has memory."""
    return isinstance(sae, MTTrainingSAE) and sae.has_memory and sae.activation.name == "batchtopk"


@torch.no_grad()
def set_threshold_(sae: MTTrainingSAE, contexts: Iterable[Float[Tensor, "*contexts d_in"]]) -> None:
    """Set the threshold for inference, in place, so that `k` features are active at a position on average.

        k = mean over positions of sum_i [e_i > threshold]         with e of the true recursion at that threshold

    It is found by halving an interval, because a higher threshold leaves fewer features active.

    Args:
        sae: a trained SAE for which `needs_threshold` holds, with the scale of its activations folded in.
        contexts: parts of the text that it was trained on, each whole contexts, `(batch, pos, d_in)` or laid end to end, zero at masked
            positions. As many are read as `_N_POSITIONS` needs.
    """
    flat = {"reshape_activations": "none"}  # the heads of `h` lie side by side already
    inference = MTSAE(MTSAEConfig.from_dict(sae.cfg.get_inference_sae_cfg_dict() | flat)).to(sae.device)
    weights = sae.state_dict()
    sae.process_state_dict_for_saving_inference(weights)
    inference.load_state_dict(weights)
    parts = _take(contexts)
    n_positions = sum(int((~inference.read_contexts(h.to(sae.device))[1]).sum()) for h in parts)

    def l0(threshold: float) -> float:
        inference.threshold.fill_(threshold)
        return sum(int((inference.encode(h.to(sae.device)) > 0).sum()) for h in parts) / max(n_positions, 1)

    threshold = state_tensor(sae, "topk_threshold")
    low, high = 0.0, max(float(threshold), torch.finfo(torch.float32).eps)
    while l0(high) > sae.cfg.k:
        low, high = high, 2 * high
    for _ in range(_N_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if l0(middle) > sae.cfg.k else (low, middle)
    threshold.fill_(high)


def _take(contexts: Iterable[Tensor]) -> list[Tensor]:
    """Take contexts up to `_N_POSITIONS` positions, in parts of about `_N_AT_ONCE`."""
    parts: list[list[Tensor]] = [[]]
    n_in_part = n = 0
    for h in contexts:
        parts[-1].append(h)
        n_new = h.numel() // h.shape[-1]
        n, n_in_part = n + n_new, n_in_part + n_new
        if n >= _N_POSITIONS:
            break
        if n_in_part >= _N_AT_ONCE:
            parts.append([])
            n_in_part = 0
    return [torch.cat(part) for part in parts if part]
