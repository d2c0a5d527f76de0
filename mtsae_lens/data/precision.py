"""In which numbers a language model is held, and in which numbers what it gives is computed with.

Weights and activations of a model may be in half precision, which takes half the memory. SAEs, losses and statistics stay in float32:
`log_softmax` of bfloat16 logits would itself be rounded to two or three digits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mtsae_lens.data.choices import DTYPES
from mtsae_lens.errors import ModelError

HALF_PRECISION = (torch.bfloat16, torch.float16)

MAX_LOG_PROB_DIFFERENCE = 1e-3  # between two forms of one model in float32
MAX_ROUNDING_RATIO = 2.0  # of a form's rounding error to that of the model it was made from

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


_OF_PROCESSED_WEIGHTS = frozenset(
    "center_writing_weights center_unembed fold_ln fold_value_biases refactor_factored_attn_matrices".split()
)
"""Options with which TransformerLens changes weights as it loads them. Here weights stay as they are: False is what is done anyway."""


def unfollowed_options(from_pretrained_kwargs: Mapping[str, Any] | None) -> list[str]:
    """List the `model_from_pretrained_kwargs` of SAELens that models are not loaded with here, as `name=value`.

    Args:
        from_pretrained_kwargs: what a configuration or an SAE says; of these `dtype` is followed.
    """
    return [
        f"{name}={value!r}"
        for name, value in (from_pretrained_kwargs or {}).items()
        if name not in ("dtype", "torch_dtype") and not (name in _OF_PROCESSED_WEIGHTS and value is False)
    ]


def in_float32(values: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def log_probs_of(logits: Float[Tensor, "*n d_vocab"]) -> Float[Tensor, "*n d_vocab"]:
    """`log_softmax` over the vocabulary, computed in float32 at least: in nats."""
    return in_float32(logits).log_softmax(dim=-1)


def disagreement(
    got: Float[Tensor, "*n d_vocab"],
    expected: Float[Tensor, "*n d_vocab"],
    renderings: Sequence[Float[Tensor, "*n d_vocab"]] = (),
) -> str | None:
    """How two forms of one model in float32 give other logits, in words; None where they agree.

    No log-probability may differ by more than `MAX_LOG_PROB_DIFFERENCE`; in a model so sensitive that its own renderings differ by more,
    by no more than `MAX_ROUNDING_RATIO` times as much as these.

    Args:
        got: logits of the one.
        expected: logits of the other, on the same tokens.
        renderings: logits of the other, computed in ways that differ in nothing but rounding.
    """
    given, middle, *others = (log_probs_of(logits) for logits in (got, expected, *renderings))
    own = max([0.0, *((other - middle).abs().max().item() for other in others)])
    largest = (given - middle).abs().max().item()
    if largest < max(MAX_LOG_PROB_DIFFERENCE, MAX_ROUNDING_RATIO * own):  # NaN is not
        return None
    return f"log-probabilities differ by {largest:.3g}"


def rounding_disagreement(
    got: Float[Tensor, "*n d_vocab"], exact: Float[Tensor, "*n d_vocab"], renderings: Sequence[Float[Tensor, "*n d_vocab"]]
) -> str | None:
    """How a form of a model in half precision differs by more than rounding explains, in words; None where it does not.

    Roundings at every step add up to a difference that depends on the model: where two dimensions of the residual stream carry numbers
    a hundred times those of the others, the logits of a right model may differ from themselves by more than their own spread. So what
    rounding explains is measured:

        rms(got - exact) <= MAX_ROUNDING_RATIO * max over renderings of rms(rendering - exact)

    with logits less their mean over the vocabulary, which softmax does not see. The last rounding, of the logits themselves, is always
    allowed. What is smaller than rounding cannot be seen here, but is in float32 (`disagreement`).

    Args:
        got: logits of that form.
        exact: of the model that it was made from, computed in float32 from the same half-precision weights.
        renderings: of the same model in the same half precision, computed in ways that differ in nothing but rounding.
    """
    dtype = got.dtype
    centred, middle, *others = (
        logits.float() - logits.float().mean(dim=-1, keepdim=True) for logits in (got, exact, *renderings)
    )
    spread = _rms(middle)
    floor = torch.finfo(dtype).eps * _rms(exact.float())
    allowed = MAX_ROUNDING_RATIO * max([floor, *(_rms(other - middle) for other in others)])
    differs = _rms(centred - middle)
    if differs <= allowed:  # NaN is not
        return None
    share, explained = (value / spread if spread else float("inf") for value in (differs, allowed))
    return f"they differ by {share:.2%} of their spread, of which rounding to {dtype_name(dtype)} explains {explained:.2%}"


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()
