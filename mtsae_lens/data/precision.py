"""Choose the dtype that holds a language model, and compute with its outputs in float32.

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

MAX_LOG_PROB_DIFFERENCE = 1e-3  # in nats, between two implementations of one model in float32
MAX_ROUNDING_RATIO = 2.0  # rounding error of an implementation, relative to that of the original model

_ALIASES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}  # short names that TransformerLens accepts as well


def torch_dtype(name: str) -> torch.dtype:
    """Return the torch dtype of a name.

    Args:
        name: `float32`, `bfloat16` or `float16`.

    Raises:
        ModelError: language models are not loaded in this dtype here.
    """
    if name not in DTYPES:
        raise ModelError(f"expected a dtype out of {', '.join(DTYPES)}, got {name!r}; give one of them")
    return getattr(torch, name)


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype in configurations, such as `bfloat16`.

    Args:
        dtype: a torch dtype.
    """
    return str(dtype).removeprefix("torch.")


def recorded_dtype(from_pretrained_kwargs: Mapping[str, Any] | None) -> str | None:
    """Return the dtype in what SAELens records as `model_from_pretrained_kwargs`; None if it records none, which means float32.

    Args:
        from_pretrained_kwargs: the recorded options. `torch_dtype`, which TransformerLens still reads, overrides `dtype`; both may be a
            torch dtype or its name.
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
    """Cast half precision to float32; return float32 and float64 unchanged.

    Args:
        values: a tensor of any shape.
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))


def log_probs_of(logits: Float[Tensor, "*n d_vocab"]) -> Float[Tensor, "*n d_vocab"]:
    """Compute `log_softmax` over the vocabulary in at least float32.

    Args:
        logits: `(..., d_vocab)`.

    Returns:
        Log-probabilities of the same shape, in nats.
    """
    return in_float32(logits).log_softmax(dim=-1)


def disagreement(
    got: Float[Tensor, "*n d_vocab"],
    expected: Float[Tensor, "*n d_vocab"],
    renderings: Sequence[Float[Tensor, "*n d_vocab"]] = (),
) -> str | None:
    """Describe how the logits of two implementations of one model in float32 differ; None if they agree.

    They agree if no log-probability differs by more than `MAX_LOG_PROB_DIFFERENCE`. For a model so sensitive that its own renderings
    differ by more than that, the limit is `MAX_ROUNDING_RATIO` times the largest difference between renderings.

    Args:
        got: logits of the implementation to check.
        expected: logits of the original, on the same tokens.
        renderings: logits of the original, computed in ways that differ only in rounding.
    """
    given, middle, *others = (log_probs_of(logits) for logits in (got, expected, *renderings))
    own = max([0.0, *((other - middle).abs().max().item() for other in others)])
    largest = (given - middle).abs().max().item()
    if largest < max(MAX_LOG_PROB_DIFFERENCE, MAX_ROUNDING_RATIO * own):  # False for NaN
        return None
    return f"log-probabilities differ by {largest:.3g}"


def rounding_disagreement(
    got: Float[Tensor, "*n d_vocab"], exact: Float[Tensor, "*n d_vocab"], renderings: Sequence[Float[Tensor, "*n d_vocab"]]
) -> str | None:
    """Describe by how much an implementation in half precision differs beyond what rounding explains; None if rounding explains it.

    Rounding at every step adds up to a difference that depends on the model: if two dimensions of the residual stream hold values a
    hundred times larger than the others, correct logits may differ by more than their own spread. The limit is therefore measured on
    the original model:

        rms(got - exact) <= MAX_ROUNDING_RATIO * max over renderings of rms(rendering - exact)

    where the mean over the vocabulary is subtracted from the logits first, because softmax ignores it. The rounding of the logits
    themselves is always allowed. Differences smaller than rounding cannot be seen here, but `disagreement` sees them in float32.

    Args:
        got: logits of the implementation to check.
        exact: logits of the original, computed in float32 from the same half-precision weights.
        renderings: logits of the original in the same half precision, computed in ways that differ only in rounding.
    """
    dtype = got.dtype
    centered, middle, *others = (
        logits.float() - logits.float().mean(dim=-1, keepdim=True) for logits in (got, exact, *renderings)
    )
    spread = _rms(middle)
    floor = torch.finfo(dtype).eps * _rms(exact.float())
    allowed = MAX_ROUNDING_RATIO * max([floor, *(_rms(other - middle) for other in others)])
    differs = _rms(centered - middle)
    if differs <= allowed:  # False for NaN
        return None
    share, explained = (value / spread if spread else float("inf") for value in (differs, allowed))
    return f"they differ by {share:.2%} of their spread, of which rounding to {dtype_name(dtype)} explains {explained:.2%}"


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()
