"""Read tensors of any form that SAELens hands over as whole contexts, and give features the form of the input again."""

from __future__ import annotations

from typing import Any

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from mtsae_lens.errors import DataError


def as_contexts(h: Tensor, cfg: Any, reach: tuple[int, int]) -> Float[Tensor, "batch pos d_in"]:
    """Turn activations into contexts.

    Args:
        h: contexts `(batch, pos, d_in)`, or rows `(batch * context_size, d_in)`.
        cfg: the configuration of the SAE.
        reach: how many positions before and after the current one the encoder reads.

    Returns:
        Contexts.

    Raises:
        DataError: another shape or width, or a single position of an encoder that reads others.
    """
    size = cfg.context_size
    if not h.ndim or h.shape[-1] != cfg.d_in:
        raise DataError(
            f"expected activations of width d_in={cfg.d_in}, got shape {tuple(h.shape)}; give those of the hook of the SAE"
        )
    if h.ndim == 2:
        if h.shape[0] % size:
            raise DataError(
                f"expected a multiple of {size} rows, because a 2-D input is read as contexts of {size} positions laid end to end, got "
                f"{h.shape[0]} rows; pass (batch, pos, d_in), such as h.unsqueeze(0) for one whole context"
            )
        return rearrange(h, "(batch pos) d_in -> batch pos d_in", pos=size)
    if h.ndim != 3:
        raise DataError(f"expected (batch, pos, {cfg.d_in}) or (rows, {cfg.d_in}), got shape {tuple(h.shape)}; reshape it")
    if h.shape[1] == 1 and reach != (0, 0):
        raise DataError(
            f"expected whole contexts, because this encoder reads {reach[0]} positions back, got a single position; pass "
            "the whole context (in generate, use_past_kv_cache=False)"
        )
    return h


def as_given(feature_acts: Float[Tensor, "batch pos d_sae"], n_dims: int) -> Tensor:
    """Give features the form of the input.

    Args:
        feature_acts: features of contexts.
        n_dims: number of dimensions of the input, that of heads not counted: 2 for rows, 3 for contexts.

    Returns:
        Rows for rows, contexts for contexts.
    """
    return rearrange(feature_acts, "batch pos d_sae -> (batch pos) d_sae") if n_dims == 2 else feature_acts


def check_whole_contexts(batch: Tensor, cfg: Any) -> None:
    """Check that rows can be contexts laid end to end.

    In a context that begins with BOS, position 0 has read nothing else, so its activations are the same in every context.

    Args:
        batch: the batch of a training step.
        cfg: the configuration, whose metadata says how the contexts were made.

    Raises:
        DataError: the contexts have another length, or the rows do not repeat BOS where they must.
    """
    metadata = cfg.metadata
    if metadata.context_size not in (None, cfg.context_size):
        raise DataError(
            f"expected contexts of context_size={cfg.context_size}, that of the SAE, got contexts of {metadata.context_size}; make them equal"
        )
    if batch.ndim != 2 or not metadata.prepend_bos:
        return
    first = batch[:: cfg.context_size].float()
    if ((first - first[0]).norm(dim=-1) > 0.1 * first[0].norm()).any():  # far above rounding in bfloat16, far below two tokens
        raise DataError(
            f"expected a batch of whole contexts, in which every {cfg.context_size}th row is BOS (prepend_bos=True), got rows that differ there"
            "; train with mtsae_lens.training.runner.SequenceSAETrainingRunner, or keep SAELens's runner from mixing positions "
            "(activations_mixing_fraction=0.0, without exclude_special_tokens), or set prepend_bos=False for contexts without BOS"
        )
