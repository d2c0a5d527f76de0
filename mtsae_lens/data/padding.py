"""How a language model is told which positions of a batch are padding, so that each prompt is read as it is alone."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Bool, Int
from sae_lens import HookedSAETransformer
from torch import Tensor

from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.precision import in_float32
from mtsae_lens.errors import ModelError

_N_PADDING, _N_TEXT = 3, 6  # positions of the probe
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}  # of the largest logit; attending to padding changes far more
_TOLERANCE_HALF = 0.15
_probed: WeakSet[Any] = WeakSet()


def attention_options(model: AnyHookedModel, padding: Bool[Tensor, "batch pos"]) -> dict[str, Any]:
    """Make the options with which a call of a hooked model leaves padding out of attention and out of the count of positions.

    `HookedTransformer` takes leading padding tokens for padding by itself where its tokenizer pads on the left, a lone BOS among
    them if both are one token; a bridge never does. With these options both read what they are told to read.

    Args:
        model: a `HookedTransformer` or a bridge.
        padding: True where a position is padding (`ContextCutter.left_padding`).

    Returns:
        Keyword arguments for `model(...)`, `model.run_with_cache(...)` and `model.run_with_hooks(...)`; empty where none are needed.

    Raises:
        ModelError: the model reads a padded prompt in another way than the prompt alone, whatever it is told.
    """
    if bool(padding.any()):
        _check_padding_is_left_out(model)
        return {"attention_mask": (~padding).long()}
    guesses = isinstance(model, HookedSAETransformer) and getattr(model.tokenizer, "padding_side", None) == "left"
    return {"attention_mask": (~padding).long()} if guesses else {}


def hugging_face_options(padding: Bool[Tensor, "batch pos"]) -> dict[str, Any]:
    """Make the same options for a model of Hugging Face, whose positions count padding unless it is given them."""
    if not bool(padding.any()):
        return {}
    return {"attention_mask": (~padding).long(), "position_ids": ((~padding).long().cumsum(dim=1) - 1).clamp(min=0)}


@torch.no_grad()
def _check_padding_is_left_out(model: AnyHookedModel) -> None:
    """Compare the logits of a short prompt alone and behind padding, once for each model.

    A model on which hooks stand already is not probed: they belong to the user's batch.
    """
    if model in _probed or any(hook.fwd_hooks for hook in model.hook_dict.values()):
        return
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.cfg.d_vocab, (1, _N_PADDING + _N_TEXT), generator=generator)
    tokens = tokens[:, -model.cfg.n_ctx :].to(model.cfg.device)
    n_padding = min(_N_PADDING, tokens.shape[1] - 1)
    mask = torch.ones_like(tokens)
    mask[:, :n_padding] = 0
    cure = "give prompts of one length, or one prompt at a time"
    try:
        padded = in_float32(_logits(model, tokens, mask)[:, n_padding:])
    except TypeError as error:
        raise ModelError(f"{model.cfg.model_name} takes no attention mask, so it cannot read padded prompts; {cure}") from error
    alone = in_float32(_logits(model, tokens[:, n_padding:], mask[:, n_padding:]))
    difference = (padded - alone).abs().max().item() / alone.abs().max().item()
    if not difference <= _TOLERANCE.get(model.cfg.dtype, _TOLERANCE_HALF):
        raise ModelError(
            f"{model.cfg.model_name} reads a prompt behind padding otherwise than alone (logits differ by {difference:.2g} of their size); "
            f"{cure}"
        )
    _probed.add(model)


def _logits(model: AnyHookedModel, tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"]) -> Tensor:
    return model(tokens, prepend_bos=False, return_type="logits", attention_mask=mask)
