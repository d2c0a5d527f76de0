"""Check the tokens, activations and prompts that a user hands to a language model, before it runs."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.errors import DataError


def check_tokens(model: AnyHookedModel, tokens: Any) -> None:
    """Check that a model can read some tokens.

    Args:
        model: the language model.
        tokens: contexts or prompts, `(batch, pos)`.

    Raises:
        DataError: they are no tokens `(batch, pos)`, there are none, the vocabulary lacks one, or the model reads fewer positions.
    """
    if not isinstance(tokens, Tensor) or tokens.ndim != 2:
        came = f"shape {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else f"a {type(tokens).__name__}"
        raise DataError(f"expected tokens (batch, pos), got {came}; give lm.model.to_tokens(text)")
    if tokens.dtype != torch.long:
        raise DataError(f"expected tokens of dtype torch.int64, got {tokens.dtype}; give lm.model.to_tokens(text)")
    if not tokens.numel():
        raise DataError(f"expected at least one prompt of at least one token, got shape {tuple(tokens.shape)}; give a text")
    cfg = model.cfg
    if tokens.shape[1] > cfg.n_ctx:
        raise DataError(
            f"expected at most {cfg.n_ctx} positions, got {tokens.shape[1]}; cut the text, such as tokens[:, :{cfg.n_ctx}]"
        )
    low, high = (int(extreme) for extreme in tokens.aminmax())
    if low < 0 or high >= cfg.d_vocab:
        raise DataError(
            f"expected tokens from 0 to {cfg.d_vocab - 1}, got {low if low < 0 else high}; make tokens with lm.model.to_tokens(text)"
        )


def check_activations(model: AnyHookedModel, tokens: Any, h: Any) -> None:
    """Check that a model can read some tokens, and that some activations are at their positions.

    Args:
        model: the language model.
        tokens: contexts or prompts, `(batch, pos)`.
        h: activations, `(batch, pos, ...)`.

    Raises:
        DataError: see `check_tokens`; or the activations have other positions.
    """
    check_tokens(model, tokens)
    if not isinstance(h, Tensor) or h.shape[:2] != tokens.shape:
        came = f"shape {tuple(h.shape)}" if isinstance(h, Tensor) else f"a {type(h).__name__}"
        raise DataError(
            f"expected activations of shape {tuple(tokens.shape)} and a width, got {came}; give lm.activations(tokens)"
        )


def check_prompts(cutter: ContextCutter, tokens: Int[Tensor, "batch pos"]) -> None:
    """Check that no prompt consists of padding only or ends with padding, because text would follow the padding.

    Args:
        cutter: its tokenizer says which token is padding.
        tokens: the prompts.

    Raises:
        DataError: there is such a prompt.
    """
    tokenizer = cutter.tokenizer
    if tokenizer.pad_token_id is None or len(tokens) * tokens.shape[1] == 1:
        return
    is_pad = tokens == tokenizer.pad_token_id
    alone = is_pad.all(dim=1)
    begins = cutter.prepend_bos and tokenizer.pad_token_id == tokenizer.bos_token_id  # a lone BOS is a prompt
    if tokens.shape[1] > 1 and not begins and bool(alone.any()):
        raise DataError(
            f"expected text in every prompt, got only padding in prompt {int(alone.nonzero()[0])} of the batch; give it at least one "
            "token, or leave it out"
        )
    ends = is_pad[:, -1] & ~alone
    if bool(ends.any()) and not bool(ends[~alone].all()):
        raise DataError(
            f"expected padding on the left, got prompt {int(ends.nonzero()[0])} of the batch padded on the right; give "
            'lm.model.to_tokens(prompts, padding_side="left")'
        )
