"""Describe what a feature writes: the tokens that its decoder direction promotes and suppresses, and the nearest other directions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor

from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.lazy_logits import rows_at_once
from mtsae_lens.progress import track
from mtsae_lens.splice.hooked_lm import HookedLM

_FEATURES_AT_ONCE = 256
_HOOK_Z = re.compile(r"blocks\.(\d+)\.attn\.hook_z$")


def get_residual_directions(lm: HookedLM) -> Float[Tensor, "d_sae d_model"] | None:
    """Return the decoder directions as they are added to the residual stream.

    Args:
        lm: model and SAE.

    Returns:
        The rows of `W_dec`, mapped by `W_O` at `hook_z`; None at a hook whose activations are not added to the residual stream.
    """
    model, W_dec, hook_name = lm.model, lm.sae.W_dec.detach().float(), lm.splice.decoded_hook_name
    if match := _HOOK_Z.match(hook_name):
        head, W_O = lm.sae.cfg.metadata.hook_head_index, model.blocks[int(match[1])].attn.W_O.detach().float()
        return W_dec @ (W_O.flatten(0, 1) if head is None else W_O[head])
    writes = re.search(r"hook_(resid_pre|resid_mid|resid_post|mlp_out|attn_out)$", hook_name)
    return W_dec if writes and W_dec.shape[1] == model.cfg.d_model else None


@torch.no_grad()
def measure_last_gain(model: AnyHookedModel) -> Float[Tensor, " d_model"]:
    """Measure the factors by which the last norm multiplies each dimension.

    They are measured because some model families (Gemma) add one to the weight that they store. A vector with entries +c and -c in
    equal number has mean 0, and normalization maps it to +1 and -1. What remains is the gain and the bias, and the bias cancels in the
    difference of two such vectors.

    Args:
        model: the language model.

    Returns:
        The gains, `(d_model,)`.
    """
    parameter = model.W_U
    signs = torch.ones(model.cfg.d_model, dtype=parameter.dtype, device=parameter.device)
    signs[1::2] = -1
    up, down = (model.ln_final(size * signs.view(1, 1, -1))[0, 0].float() for size in (64, -64))
    return (up - down) / 2 * signs.float()


@torch.no_grad()
def compute_token_logits(lm: HookedLM, directions: Float[Tensor, "d_sae d_model"]) -> Iterator[Float[Tensor, "chunk d_vocab"]]:
    """Yield `(directions * measure_last_gain) @ W_U`, with the mean over the vocabulary subtracted, for a chunk of features at a time.

    The gain of the last norm is applied (models are loaded unfolded); its division by the standard deviation is not, so logits are
    known up to a factor.

    Args:
        lm: model and SAE.
        directions: directions of the residual stream.
    """
    gain = measure_last_gain(lm.model)
    W_U = lm.model.W_U.detach().float()
    for chunk in directions.split(_features_at_once(lm)):
        logits = (chunk * gain) @ W_U
        yield logits - logits.mean(dim=-1, keepdim=True)


def _features_at_once(lm: HookedLM) -> int:
    return min(_FEATURES_AT_ONCE, rows_at_once(lm.model.cfg.d_vocab))


def find_extreme_tokens(lm: HookedLM, n: int) -> dict[str, Tensor]:
    """Find the `n` most promoted and most suppressed tokens of every feature.

    Args:
        lm: model and SAE.
        n: tokens listed for each feature.

    Returns:
        `promoted`, `promoted_logits`, `suppressed`, `suppressed_logits`, each `(d_sae, n)`; empty at a hook that is not added to the
        residual stream.
    """
    directions = get_residual_directions(lm)
    if directions is None:
        return {}
    size = (len(directions), min(n, lm.model.W_U.shape[1]))
    # The results are filled in place. Small tensors allocated between large temporary ones would keep that memory from being reused.
    found = {name: torch.empty(size, dtype=torch.long) for name in ("promoted", "suppressed")}
    values = {f"{name}_logits": torch.empty(size) for name in found}
    n_at_once = _features_at_once(lm)
    n_chunks = -(-len(directions) // n_at_once)
    for number, logits in enumerate(
        track(compute_token_logits(lm, directions), "reading what features write", "chunk", n_chunks)
    ):
        rows = slice(number * n_at_once, (number + 1) * n_at_once)
        for name, largest in (("promoted", True), ("suppressed", False)):
            values[f"{name}_logits"][rows], found[name][rows] = logits.topk(size[1], dim=1, largest=largest)
    return found | values


@torch.no_grad()
def find_neighbors(sae: SAE[Any], n: int) -> tuple[Float[Tensor, "d_sae n"], Int[Tensor, "d_sae n"]]:
    """Find the `n` nearest other decoder directions of every feature. All pairs are compared, a chunk of features at a time.

    Args:
        sae: the SAE whose decoder directions are compared.
        n: neighbors listed for each feature.

    Returns:
        The cosines, highest first, and the numbers of these features.
    """
    unit = torch.nn.functional.normalize(sae.W_dec.detach().float(), dim=1)
    size = (len(unit), min(n, len(unit) - 1))
    values, indices = torch.empty(size), torch.empty(size, dtype=torch.long)
    for number, chunk in enumerate(track(unit.split(_FEATURES_AT_ONCE), "finding nearest directions", "chunk")):
        start, end = number * _FEATURES_AT_ONCE, number * _FEATURES_AT_ONCE + len(chunk)
        cosine = chunk @ unit.T
        cosine[torch.arange(len(chunk)), torch.arange(start, end)] = -torch.inf
        values[start:end], indices[start:end] = cosine.topk(size[1], dim=1)
    return values, indices
