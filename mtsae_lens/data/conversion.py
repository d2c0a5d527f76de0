"""Check on a few random tokens that a model with hooks computes the same logits as the model it was made from.

In float32 the two must agree closely, so a conversion is accepted or refused independently of the dtype in which it is used later. In half
precision, even a correct model gives different logits when its sums run in a different order, by an amount that depends on the model. The
allowed difference is therefore measured on the original model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mtsae_lens.data.precision import HALF_PRECISION, disagreement, dtype_name, rounding_disagreement
from mtsae_lens.errors import ModelError

_ATTENTIONS = ("eager", "sdpa")
_MAX_PROBE = 128


def probe_tokens(d_vocab: int, n_ctx: int, device: str) -> Int[Tensor, "1 pos"]:
    """Return one row of random tokens, which depends on the sizes alone.

    Args:
        d_vocab: size of the vocabulary.
        n_ctx: longest context of the model; at most 128 tokens are drawn.
        device: device to put the tokens on.
    """
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, d_vocab, (1, min(_MAX_PROBE, n_ctx)), generator=generator).to(device)


@torch.no_grad()
def logits_of(model: Any, tokens: Int[Tensor, "batch pos"], d_vocab: int) -> Float[Tensor, "batch pos d_vocab"]:
    """Return the logits of a hooked model or of a transformers model, without the columns that pad the vocabulary.

    Args:
        model: called on `tokens`; returns logits, or an object with `logits`.
        tokens: token ids, `(batch, pos)`.
        d_vocab: number of logits to keep.

    Returns:
        Logits `(batch, pos, d_vocab)`.
    """
    output = model(tokens)
    return getattr(output, "logits", output)[..., :d_vocab]


@contextmanager
def weights_in_float32(model: torch.nn.Module) -> Iterator[None]:
    """Hold a model's half-precision weights in float32 within this context; afterwards they are restored bit for bit.

    One tensor is cast at a time, so the model takes twice its memory, not three times. Tensors that a model keeps in float32 anyway,
    such as rotary frequencies, are not changed.

    Args:
        model: the model, changed in place.
    """
    cast = [(tensor, tensor.dtype) for tensor in (*model.parameters(), *model.buffers()) if tensor.dtype in HALF_PRECISION]
    cfg: Any = getattr(model, "cfg", None)
    dtype = getattr(cfg, "dtype", None)
    for tensor, _ in cast:
        tensor.data = tensor.data.float()
    if dtype in HALF_PRECISION:
        cfg.dtype = torch.float32
    try:
        yield
    finally:
        for tensor, before in cast:
            tensor.data = tensor.data.to(before)
        if dtype in HALF_PRECISION:
            cfg.dtype = dtype


@dataclass(frozen=True, eq=False)
class Reference:
    """The logits of a transformers model on probe tokens, recorded before the model is converted or wrapped.

    Args:
        name: name of the model, for errors.
        dtype: dtype of its weights.
        tokens: the probe tokens.
        exact: its logits, computed in float32 from the same weights.
        renderings: its logits in its own dtype, computed in several ways that differ only in rounding.
        exact_renderings: the same in float32.
    """

    name: str
    dtype: torch.dtype
    tokens: Int[Tensor, "1 pos"]
    exact: Float[Tensor, "1 pos d_vocab"]
    renderings: tuple[Float[Tensor, "1 pos d_vocab"], ...]
    exact_renderings: tuple[Float[Tensor, "1 pos d_vocab"], ...]

    @classmethod
    def take(cls, name: str, model: Any, d_vocab: int, n_ctx: int) -> Reference:
        """Record the logits of a transformers model.

        Args:
            name: name of the model, for errors.
            model: a causal language model of transformers.
            d_vocab: size of the vocabulary.
            n_ctx: longest context of the model.

        Returns:
            The reference logits.

        Raises:
            ModelError: the logits are not finite, or the logits at a token depend on later tokens.
        """
        tokens = probe_tokens(d_vocab, n_ctx, str(model.device))
        dtype = model.dtype
        renderings = _renderings(model, tokens, d_vocab)
        if dtype in HALF_PRECISION:
            _check_finite(name, dtype, "the model itself", *renderings)
            with weights_in_float32(model):
                exact = logits_of(model, tokens, d_vocab)
                exact_renderings = _renderings(model, tokens, d_vocab)
                _check_causal(name, model, tokens, exact)
        else:
            exact, exact_renderings = logits_of(model, tokens, d_vocab), renderings
            _check_finite(name, dtype, "the model itself", exact)
            _check_causal(name, model, tokens, exact)
        return cls(name, dtype, tokens, exact, renderings, exact_renderings)

    def check_float32(self, model: Any) -> None:
        """Compare a hooked model whose weights are in float32 with the reference.

        Args:
            model: the hooked model.

        Raises:
            ModelError: its logits differ.
        """
        got = logits_of(model, self.tokens, self.exact.shape[-1])
        difference = disagreement(got, self.exact, self.exact_renderings)
        if difference is not None:
            raise ModelError(
                f"{self.name}: expected the same logits with hooks as without, got others ({difference}); load another model"
            )

    def check_half(self, model: Any) -> None:
        """Compare a hooked model in half precision with the reference.

        Args:
            model: the hooked model.

        Raises:
            ModelError: its logits are not finite, or differ by more than rounding explains.
        """
        got = logits_of(model, self.tokens, self.exact.shape[-1])
        _check_finite(self.name, self.dtype, "the model with hooks", got)
        difference = rounding_disagreement(got, self.exact, self.renderings)
        if difference is not None:
            raise ModelError(
                f"{self.name}: expected the same logits with hooks as without, got others ({difference}); load another model"
            )


def _renderings(model: Any, tokens: Int[Tensor, "1 pos"], d_vocab: int) -> tuple[Float[Tensor, "1 pos d_vocab"], ...]:
    """Return a model's logits computed with each attention implementation, for one row and for a batch of two."""
    own = getattr(model.config, "_attn_implementation", None)
    found = [logits_of(model, tokens.repeat(2, 1), d_vocab)[:1]]
    for attention in _ATTENTIONS:
        try:
            model.set_attn_implementation(attention)
        except (ValueError, ImportError, AttributeError, NotImplementedError):  # a family that has no such attention
            continue
        found.append(logits_of(model, tokens, d_vocab))
    if own is not None:
        model.set_attn_implementation(own)
    return tuple(found)


def _check_causal(name: str, model: Any, tokens: Int[Tensor, "1 pos"], logits: Float[Tensor, "1 pos d_vocab"]) -> None:
    half = tokens.shape[1] // 2
    if half == 0:
        return
    changed = torch.cat([tokens[:, :half], tokens[:, half:].roll(1, dims=1)], dim=1)
    if disagreement(logits_of(model, changed, logits.shape[-1])[:, :half], logits[:, :half]) is not None:
        raise ModelError(
            f"{name}: expected a causal language model, got logits that depend on later tokens; give a decoder-only model"
        )


def _check_finite(name: str, dtype: torch.dtype, which: str, *logits: Tensor) -> None:
    if all(torch.isfinite(part).all() for part in logits):
        return
    if dtype not in HALF_PRECISION:
        raise ModelError(
            f"{name}: expected finite logits, got NaN or infinity ({which}), so the weights are damaged; download or save the model again"
        )
    largest, cure = torch.finfo(dtype).max, "float32" if dtype == torch.bfloat16 else "bfloat16 or float32"
    raise ModelError(
        f"{name}: expected finite logits, got NaN or infinity in {dtype_name(dtype)} ({which}; the dtype ends at {largest:,.4g}); give "
        f"dtype {cure}"
    )
