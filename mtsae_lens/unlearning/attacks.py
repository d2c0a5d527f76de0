"""Attack a model that was made to forget, to bring the forgotten text back: relearning, dilution, quantization.

Each attack works for a model with changed weights and for an edit at a hook. Two attacks need no code. *Hook removal*: an edit at a hook is
suppression, and without the hook the model is exactly the clean one. *An unseen template*: questions from `facts:forget:unseen`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mtsae_lens.data.bridges import AnyHookedModel, HookedBridge
from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.packing import Spans
from mtsae_lens.data.precision import in_float32
from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.errors import ConfigError, DataError, ModelError
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.finetuning.batches import mixed_batches
from mtsae_lens.unlearning.finetuning.clones import clone_model, clone_to_train
from mtsae_lens.unlearning.finetuning.finetune import FinetuneSettings, descend, keep_later_layers
from mtsae_lens.unlearning.finetuning.losses import mean_nll
from mtsae_lens.unlearning.measures.effects import edited_logits, measure_model
from mtsae_lens.unlearning.measures.results import EditEffect

# relearning -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RelearningPoint:
    """What a model knows after `step` steps of relearning; step 0 is before the attack."""

    step: int
    effects: tuple[EditEffect, ...]  # one for each measured table, relative to the clean model

    @property
    def nll(self) -> tuple[float, ...]:
        """Return the loss on each table, in nats per token. The attack succeeds to the extent that the loss falls to that of the clean
        model.
        """
        return tuple(effect.mean(effect.nll_edited) for effect in self.effects)

    @property
    def exact_recall(self) -> tuple[float, ...]:
        """Return the share of contexts (or of answers to questions) that greedy decoding reproduces exactly, for each table."""
        return tuple(effect.exact_recall for effect in self.effects)


def relearn(
    lm: HookedLM,
    learned: TokenTable,
    measured: Sequence[TokenTable],
    settings: FinetuneSettings,
    *,
    weights: AnyHookedModel | None = None,
    edit: Edit | None = None,
    hook_while_learning: bool = True,
) -> list[RelearningPoint]:
    """Finetune a model that was made to forget on some of the forget text (NLL descent on the weights from
    `settings.first_layer` on, which are all weights by default), and measure what comes back.

    After Lucki et al. 2024 (arXiv 2409.18025), who relearn from a few examples. Learning a text also teaches its domain, so compare with
    `weights=lm.model`, which forgot nothing, and with a model that was never trained on the text. An edit is always applied during the
    measurement. The gradient of relearning goes through the edit, unless the attacker trains without the hook.

    Args:
        lm: the clean model, with its SAE if there is an edit. Neither is changed.
        learned: the text that the attacker has; see `sample_documents` and `split_by_document`.
        measured: texts that are not in `learned`.
        settings: rate and number of steps. The model is measured at `snapshots`, by default before and after the attack.
        weights: a model that forgot by a change of its weights; None for the clean model.
        edit: an edit that suppresses at the hook; None for no edit.
        hook_while_learning: whether the edit is also applied while the model relearns.

    Returns:
        One point for each snapshot, in order.

    Raises:
        ConfigError: neither `weights` nor `edit` is given; or a snapshot lies after the last step.
    """
    if weights is None and edit is None:
        raise ConfigError("expected a model that forgot or an edit at the hook, got neither; give weights=... or edit=...")
    wanted = settings.snapshot_steps((0, settings.n_steps))
    model = clone_to_train(lm.model if weights is None else weights)
    batches = mixed_batches([learned], lm.cutter, min(settings.batch_size, len(learned)), settings.seed)

    def step_loss() -> Float[Tensor, ""]:
        batch = next(batches).to(model.cfg.device)
        with _attached(lm, model, edit if hook_while_learning else None, batch.tokens):
            return mean_nll(model, batch)

    names = keep_later_layers(model, [name for name, _ in model.named_parameters()], settings.first_layer)
    steps = descend(model, names, step_loss, settings.lr, settings.n_steps)
    logits = edited_logits(replace(lm, model=model), edit)
    return [
        RelearningPoint(step, tuple(measure_model(logits, lm.model, lm.cutter, table, lm.batch_size) for table in measured))
        for step in steps
        if step in wanted
    ]


def _attached(lm: HookedLM, model: AnyHookedModel, edit: Edit | None, tokens: Tensor) -> AbstractContextManager[Any]:
    return nullcontext() if edit is None else lm.splice.attached(model, edit, lm.masked(tokens))


# dilution -------------------------------------------------------------------------------------------------------------


def dilute(table: TokenTable, filler: TokenTable, cutter: ContextCutter, n_filler_tokens: int, seed: int = 0) -> TokenTable:
    """Prepend tokens of unrelated text to the contexts of a table. They are not measured, and what no longer fits is cut off.

    A context becomes `[BOS] filler_1 ... filler_n text_1 text_2 ...` without a separator, so a gate that accumulates evidence along a
    context starts from filler.

    Args:
        table: texts or questions, whose `documents` are kept.
        filler: contexts of another corpus; each context of `table` gets a random one.
        cutter: says whether contexts start with a BOS token, and how long they may be.
        n_filler_tokens: filler tokens per context.
        seed: seed of the draw.

    Returns:
        The diluted contexts.

    Raises:
        DataError: the filler has shorter contexts, or an answer would be cut off.
    """
    start = int(cutter.prepend_bos)
    if not 0 < n_filler_tokens <= filler.tokens.shape[1] - start:
        raise DataError(
            f"{filler.corpus}: expected n_filler_tokens from 1 to {filler.tokens.shape[1] - start}, got {n_filler_tokens}; "
            "give a number in this range"
        )
    rng = random.Random(seed)
    rows = torch.tensor([rng.randrange(len(filler)) for _ in range(len(table))], dtype=torch.long)
    before = filler.tokens[rows, start : start + n_filler_tokens]
    answers = torch.ones_like(table.tokens, dtype=torch.bool) if table.answers is None else table.answers
    lost = cutter.context_size - n_filler_tokens
    if table.answers is not None and bool(answers[:, lost:].any()):
        raise DataError(
            f"{table.corpus}: expected questions that fit into {cutter.context_size} tokens after {n_filler_tokens} tokens of filler, got a "
            "longer one; lower n_filler_tokens"
        )
    tokens = torch.cat([table.tokens[:, :start], before, table.tokens[:, start:]], dim=1)[:, : cutter.context_size]
    nothing = torch.zeros_like(before, dtype=torch.bool)
    counted = torch.cat([answers[:, :start], nothing, answers[:, start:]], dim=1)[:, : cutter.context_size]
    spans = None if table.spans is None else tuple(_shifted(spans, n_filler_tokens, lost) for spans in table.spans)
    return TokenTable(f"{table.corpus} behind {filler.corpus}", tokens, table.documents, counted, spans)


def _shifted(spans: Spans, by: int, lost: int) -> Spans:
    """Return where documents begin after the filler; documents that begin at or after `lost` are cut off."""
    return (spans[0], *((name, begin + by) for name, begin in spans[1:] if begin < lost))


# quantization ---------------------------------------------------------------------------------------------------------

_INPUT_AXES = {"W_Q": (1,), "W_K": (1,), "W_V": (1,), "W_O": (0, 1), "W_in": (0,), "W_gate": (0,), "W_out": (0,)}
"""Axes of a `HookedTransformer`'s weight matrices over which an output channel sums; the head axis, if any, comes first."""

_INPUT_AXIS: dict[type[nn.Module], tuple[int, ...]] = {nn.Linear: (1,), Conv1D: (0,)}
"""The same for the modules of a bridge."""


@torch.no_grad()
def quantize(model: AnyHookedModel, n_bits: int) -> AnyHookedModel:
    """Clone a model and round its attention and MLP matrices to the nearest of `2 ** n_bits - 1` values per output channel.

        scale = max |w| / (2 ** (n_bits - 1) - 1),  w' = scale * round(w / scale)

    Embeddings, unembedding, biases and norms are kept, as is usual. Small changes of weights may vanish in rounding, and what they hid
    comes back (Zhang et al. 2024, arXiv 2410.16454).

    Args:
        model: a `HookedTransformer` or a bridge, which is not changed.
        n_bits: bits per weight, at least 2.

    Returns:
        The quantized clone.

    Raises:
        ConfigError: `n_bits` is less than 2.
        ModelError: the model has no attention or MLP matrix, so nothing would be rounded; or see `clone_model`.
    """
    if n_bits < 2:
        raise ConfigError(f"expected n_bits of at least 2 (one value on either side of 0), got {n_bits}; raise it")
    rounded = clone_model(model)
    matrices = list(_matrices(rounded))
    if not matrices:
        raise ModelError(
            f"expected attention or MLP matrices (nn.Linear or Conv1D) in the blocks of {model.cfg.model_name}, got none; quantize another "
            "model"
        )
    for matrix, axes in matrices:
        values = in_float32(matrix)  # bfloat16 could not represent the 8-bit values exactly
        scale = values.abs().amax(dim=axes, keepdim=True) / (2 ** (n_bits - 1) - 1)
        matrix.copy_(torch.where(scale > 0, (values / scale).round() * scale, 0.0))
    return rounded


def _matrices(model: AnyHookedModel) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
    """Yield each matrix of the layers with the axes over which its output channels sum."""
    if isinstance(model, HookedBridge):
        for module in model.blocks.modules():
            axis = next((axis for kind, axis in _INPUT_AXIS.items() if isinstance(module, kind)), None)
            if axis is not None:
                yield module.weight, axis
        return
    for name, parameter in model.named_parameters():
        axes = _INPUT_AXES.get(name.rsplit(".", 1)[-1].lstrip("_"))
        if axes is not None:
            yield parameter, axes
