"""Whether a model with hooks computes what the model it was made from computes, on a few random tokens.

In float32 the two must agree strictly, so a conversion is proved right or refused whatever the precision it is then used in. In half
precision the same right model gives other logits with every order of its sums, and how far they lie apart depends on the model: what is
allowed is measured on the model it was made from.
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
    """Random tokens, the same ones for the same sizes."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, d_vocab, (1, min(_MAX_PROBE, n_ctx)), generator=generator).to(device)


@torch.no_grad()
def logits_of(model: Any, tokens: Int[Tensor, "batch pos"], d_vocab: int) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits of a hooked model or of one of transformers, without padding of the vocabulary."""
    output = model(tokens)
    return getattr(output, "logits", output)[..., :d_vocab]


@contextmanager
def weights_in_float32(model: torch.nn.Module) -> Iterator[None]:
    """Hold the half-precision weights of a model in float32 for a while; afterwards they are, bit for bit, what they were.

    One tensor at a time is cast, so the model takes twice its memory meanwhile, not three times. Numbers that a model holds in float32
    anyway, such as rotary frequencies, are left alone.
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
    """What a model of transformers gives on probe tokens, taken before it is converted or wrapped.

    Args:
        name: of the model, for errors.
        dtype: in which its weights are.
        tokens: that it read.
        exact: its logits, computed in float32 from its weights as they are.
        renderings: its logits in its own dtype, computed in several ways that differ in nothing but rounding.
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
        """Run a model of transformers.

        Raises:
            ModelError: its logits are not finite, or a token's logits depend on later tokens.
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
        """Raise `ModelError` unless a hooked model whose weights are in float32 gives the same logits."""
        got = logits_of(model, self.tokens, self.exact.shape[-1])
        difference = disagreement(got, self.exact, self.exact_renderings)
        if difference is not None:
            raise ModelError(f"{self.name}: with hooks, the model gives other logits ({difference})")

    def check_half(self, model: Any) -> None:
        """Raise `ModelError` unless a hooked model in half precision differs from the logits by no more than rounding explains."""
        got = logits_of(model, self.tokens, self.exact.shape[-1])
        _check_finite(self.name, self.dtype, "with hooks the model", got)
        difference = rounding_disagreement(got, self.exact, self.renderings)
        if difference is not None:
            raise ModelError(f"{self.name}: with hooks, the model gives other logits ({difference})")


def _renderings(model: Any, tokens: Int[Tensor, "1 pos"], d_vocab: int) -> tuple[Float[Tensor, "1 pos d_vocab"], ...]:
    """A model's logits with one attention and the other, alone and in a batch of two."""
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
            f"{name}: what it says of a token depends on later tokens; needed a language model that reads from left to right"
        )


def _check_finite(name: str, dtype: torch.dtype, which: str, *logits: Tensor) -> None:
    if all(torch.isfinite(part).all() for part in logits):
        return
    if dtype not in HALF_PRECISION:
        raise ModelError(f"{name}: {which} gives logits that are nan or infinite; its weights are damaged")
    largest, cure = torch.finfo(dtype).max, "float32" if dtype == torch.bfloat16 else "bfloat16 or float32"
    raise ModelError(
        f"{name}: in {dtype_name(dtype)} {which} gives logits that are nan or infinite (the largest number there is {largest:,.4g}); give "
        f"dtype {cure}"
    )
