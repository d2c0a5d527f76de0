"""In which numbers a language model is held, and in which numbers what it gives is computed with.

Weights and activations of a model may be in half precision, which takes half the memory. SAEs, losses and statistics stay in float32:
`log_softmax` of bfloat16 logits would itself be rounded to two or three digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from mtsae_lens.errors import ModelError

Dtype = Literal["float32", "bfloat16", "float16"]
FLOAT32: Dtype = "float32"
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
HALF_PRECISION = (torch.bfloat16, torch.float16)

MAX_LOG_PROB_DIFFERENCE = 1e-3  # between two forms of one model in float32

_ALIASES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}  # that TransformerLens takes beside the names


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of that name.

    Raises:
        ModelError: one that language models are not loaded in here.
    """
    if name not in DTYPES:
        raise ModelError(f"a language model is loaded in one of {', '.join(DTYPES)}; got dtype {name!r}")
    return getattr(torch, name)


def dtype_name(dtype: torch.dtype) -> str:
    """The name under which configurations know a dtype: `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def recorded_dtype(from_pretrained_kwargs: Mapping[str, Any] | None) -> str | None:
    """The dtype in what SAELens records as `model_from_pretrained_kwargs`; None where it says none, which means float32.

    `dtype`, or as TransformerLens still reads `torch_dtype`, which goes before it there; a dtype of torch, or its name.
    """
    kwargs = from_pretrained_kwargs or {}
    value = kwargs.get("torch_dtype", kwargs.get("dtype"))
    if value is None:
        return None
    name = dtype_name(value) if isinstance(value, torch.dtype) else str(value).removeprefix("torch.")
    return _ALIASES.get(name, name)


def in_float32(values: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def log_probs_of(logits: Float[Tensor, "*n d_vocab"]) -> Float[Tensor, "*n d_vocab"]:
    """`log_softmax` over the vocabulary, computed in float32 at least: in nats."""
    return in_float32(logits).log_softmax(dim=-1)


def disagreement(
    got: Float[Tensor, "*n d_vocab"], expected: Float[Tensor, "*n d_vocab"], dtype: torch.dtype, n_layers: int
) -> str | None:
    """How two forms of one model give other logits, in words; None where they give the same up to rounding.

    In float32 no log-probability may differ by more than `MAX_LOG_PROB_DIFFERENCE`. In half precision both forms round at every step, each
    in its own order, so single logits differ by a lot; compared is

        rms(got - expected) / rms(expected) <= (2 + sqrt(n_layers)) * eps,        logits less their mean over the vocabulary

    with `eps` the spacing of numbers at 1 (2^-7 in bfloat16, 2^-10 in float16): roundings add up over layers like a random walk. Of eight
    models with 2 to 32 layers, seven of them random, those rightly converted differed by 0.9 to 2.8 `eps` in either precision. A
    conversion that changes logits by less than that cannot be told from rounding; loaded in float32 the same model is checked strictly.

    Args:
        got: of the one.
        expected: of the other, on the same tokens.
        dtype: in which the models are held.
        n_layers: of each.
    """
    if dtype not in HALF_PRECISION:
        largest = (log_probs_of(got) - log_probs_of(expected)).abs().max().item()
        return None if largest < MAX_LOG_PROB_DIFFERENCE else f"log-probabilities differ by {largest:.3g}"
    got, expected = (logits.float() - logits.float().mean(dim=-1, keepdim=True) for logits in (got, expected))
    allowed = (2 + n_layers**0.5) * torch.finfo(dtype).eps
    differs, spread = ((logits.square().mean().sqrt().item()) for logits in (got - expected, expected))
    if differs <= allowed * spread:  # NaN is not
        return None
    share = differs / spread if spread else float("inf")
    return f"they differ by {share:.2%} of their spread, of which rounding to {dtype_name(dtype)} explains {allowed:.2%}"
