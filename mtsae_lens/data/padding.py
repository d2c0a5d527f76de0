"""Tell a language model which positions of a batch are padding, so that it reads each prompt as if it were alone."""

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
_TOLERANCE = {
    torch.float32: 1e-3,
    torch.float64: 1e-3,
}  # relative to the largest logit; attention to padding changes logits far more
_TOLERANCE_HALF = 0.15
_probed: WeakSet[Any] = WeakSet()


def attention_options(model: AnyHookedModel, padding: Bool[Tensor, "batch pos"]) -> dict[str, Any]:
    """Return the options with which a hooked model leaves padding out of attention and out of the count of positions.

    Without options, `HookedTransformer` guesses: if its tokenizer pads on the left, it takes leading padding tokens for padding, a
    single BOS token included if both are the same token. A bridge never guesses. With these options both follow `padding`.

    Args:
        model: a `HookedTransformer` or a bridge.
        padding: mask `(batch, pos)`, True where a position is padding (`ContextCutter.left_padding`).

    Returns:
        Keyword arguments for `model(...)`, `model.run_with_cache(...)` and `model.run_with_hooks(...)`; empty if none are needed.

    Raises:
        ModelError: the model gives different logits for a padded prompt than for the prompt alone, even with an attention mask.
    """
    if bool(padding.any()):
        _check_padding_is_left_out(model)
        return {"attention_mask": (~padding).long()}
    guesses = isinstance(model, HookedSAETransformer) and getattr(model.tokenizer, "padding_side", None) == "left"
    return {"attention_mask": (~padding).long()} if guesses else {}


def hugging_face_options(padding: Bool[Tensor, "batch pos"]) -> dict[str, Any]:
    """Return the same options for a Hugging Face model, which also needs position ids, because it counts padding as positions otherwise.

    Args:
        padding: mask `(batch, pos)`, True where a position is padding.

    Returns:
        Keyword arguments for `model(...)`; empty if there is no padding.
    """
    if not bool(padding.any()):
        return {}
    return {"attention_mask": (~padding).long(), "position_ids": ((~padding).long().cumsum(dim=1) - 1).clamp(min=0)}


@torch.no_grad()
def _check_padding_is_left_out(model: AnyHookedModel) -> None:
    """Compare the logits of a short prompt alone and behind padding, once per model.

    A model that already has hooks is not probed, because its hooks belong to the user's batch.
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
        raise ModelError(
            f"expected a model that takes an attention mask, got {model.cfg.model_name}, which takes none; {cure}"
        ) from error
    alone = in_float32(_logits(model, tokens[:, n_padding:], mask[:, n_padding:]))
    difference = (padded - alone).abs().max().item() / alone.abs().max().item()
    if not difference <= _TOLERANCE.get(model.cfg.dtype, _TOLERANCE_HALF):
        raise ModelError(
            f"expected {model.cfg.model_name} to give equal logits with and without padding, got a relative difference of {difference:.2g}; "
            f"{cure}"
        )
    _probed.add(model)


def _logits(model: AnyHookedModel, tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"]) -> Tensor:
    return model(tokens, prepend_bos=False, return_type="logits", attention_mask=mask)
