"""Recognize the language model that an edit was made on by its predictions, which `edit.json` records."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

TOLERANCES = {"float32": 0.02, "float64": 0.02, "float16": 0.05}
BFLOAT16_TOLERANCE = 0.25
"""The mean differences in log-probability, in nats, up to which two models are the same one in these dtypes: as in `load_edit`."""


def check_model(model: nn.Module, made_on: dict[str, Any], folder: Path, d_vocab: int | None, *, allow_other: bool) -> None:
    """Check that a model is the one that an edit was made on.

    Args:
        model: a Hugging Face model, without the edit.
        made_on: `model` in `edit.json`: a name, a dtype, a row of tokens and their log-probabilities.
        folder: the exported model, for the message.
        d_vocab: number of logits that are compared; None for all.
        allow_other: warn, instead of raising an error, if it is another model.

    Raises:
        ValueError: it is another model, and this is not allowed.
    """
    what = difference_of(model, made_on, d_vocab)
    if what is None:
        return
    if not allow_other:
        raise ValueError(
            f"{folder}: expected {made_on['name']}, the language model that the edit was made on, got a {type(model).__name__} with {what}; "
            "give that model, or allow another one with allow_other_model=True"
        )
    warnings.warn(
        f"{folder}: the edit was made on {made_on['name']}, and this {type(model).__name__} is another model, with {what}; measurements of "
        "the edit may not hold here",
        stacklevel=3,
    )


@torch.no_grad()
def difference_of(model: nn.Module, made_on: dict[str, Any], d_vocab: int | None) -> str | None:
    """Say in words by what a model differs from the one that an edit was made on; None if it does not.

    Args:
        model: a Hugging Face model.
        made_on: `model` in `edit.json`.
        d_vocab: number of logits that are compared; None for all.
    """
    tokens: list[int] = made_on["tokens"]
    config: Any = model.config
    if max(tokens) >= config.vocab_size or len(tokens) > getattr(config, "max_position_embeddings", len(tokens)):
        return "another vocabulary or a shorter context"
    parameter = next(model.parameters())
    row = torch.tensor([tokens], device=parameter.device)
    with _in_eval_mode(model):
        logits = getattr(model(row, use_cache=False), "logits", None)
    if logits is None or logits.shape[:2] != row.shape:
        return "no predictions of tokens"
    log_probs = logits[0, :-1, :d_vocab].float().log_softmax(dim=-1)
    given = log_probs.gather(-1, row[0, 1:, None].to(log_probs.device)).flatten().clamp(min=-1e4).cpu()
    difference = (given - torch.tensor(made_on["log_probs"])).abs().mean().item()
    dtypes = (made_on["dtype"], str(parameter.dtype).removeprefix("torch."))
    if difference <= max(TOLERANCES.get(dtype, BFLOAT16_TOLERANCE) for dtype in dtypes):
        return None
    return f"other predictions: log-probabilities differ by {difference:.2g} nats on average"


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
