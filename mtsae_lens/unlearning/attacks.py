"""Ways to bring back what a model was made to forget: relearning, dilution, quantization.

Each works for a model with other weights and for an edit at a hook. Two attacks need no code. Hook removal: an edit at a hook is
suppression, and without the hook the model is the clean one, exactly. An unseen template: questions from `facts:forget:unseen`.
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
from mtsae_lens.data.contexts import ContextCutter, TokenTable
from mtsae_lens.data.packing import Spans
from mtsae_lens.data.precision import in_float32
from mtsae_lens.errors import ConfigError, DataError, ModelError
from mtsae_lens.splice.edits import Edit
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.finetuning.batches import mixed_batches
from mtsae_lens.unlearning.finetuning.clones import clone_model, clone_to_train
from mtsae_lens.unlearning.finetuning.finetune import FinetuneSettings, descend
from mtsae_lens.unlearning.finetuning.losses import mean_nll
from mtsae_lens.unlearning.measures.effects import EditEffect, edited_logits, measure_model

# relearning -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RelearningPoint:
    """What a model knows after so many steps of relearning; step 0 is before the attack."""

    step: int
    effects: tuple[EditEffect, ...]  # of each measured table, against the clean model

    @property
    def nll(self) -> tuple[float, ...]:
        """Nats per token on each table: the attack succeeds as far as it falls to the clean model's."""
        return tuple(effect.mean(effect.nll_edited) for effect in self.effects)

    @property
    def exact_recall(self) -> tuple[float, ...]:
        """Share of contexts that greedy decoding gives exactly: of questions, the share answered."""
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
    """Finetune a model that was made to forget on a little of the forget text (NLL descent, all weights), and measure what comes back.

    After Lucki et al. 2024 (arXiv 2409.18025), who relearn from a few examples. Text that is learned teaches its domain too: compare with
    `weights=lm.model`, which forgot nothing, and with a model that never saw the text. With an edit, the measurement has it in place; the
    gradient of the learning goes through it, or passes it by where the attacker learns without the hook.

    Args:
        lm: the clean model, with its SAE where there is an edit. Neither is changed.
        learned: what the attacker has; see `sample_documents` and `split_by_document`.
        measured: text that is not in `learned`.
        settings: at `snapshots` the model is measured (none: before and after).
        weights: a model that forgot by its weights; None: the clean one.
        edit: an edit that suppresses at the hook; None: no hook.
        hook_while_learning: the edit is in place while the model relearns too.

    Raises:
        ConfigError: neither other weights nor an edit, so there is nothing to bring back; or a snapshot after the last step.
    """
    if weights is None and edit is None:
        raise ConfigError(
            "there is nothing to relearn: give a model that forgot (weights=...) or an edit at the hook (edit=...)"
        )
    wanted = settings.snapshot_steps((0, settings.n_steps))
    model = clone_to_train(lm.model if weights is None else weights)
    batches = mixed_batches([learned], lm.cutter, min(settings.batch_size, len(learned)), settings.seed)

    def step_loss() -> Float[Tensor, ""]:
        batch = next(batches).to(model.cfg.device)
        with _attached(lm, model, edit if hook_while_learning else None, batch.tokens):
            return mean_nll(model, batch)

    names = tuple(name for name, _ in model.named_parameters())
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
    """Put the contexts of a table behind the first tokens of unrelated ones, which are not counted; what no longer fits is cut off.

    `[BOS] filler_1 ... filler_n text_1 text_2 ...`, no separator: a gate that gathers evidence along a context starts from filler.

    Args:
        table: texts or questions; `documents` stay theirs.
        filler: another corpus; each context takes a random one.
        cutter: says whether contexts start with a BOS, and how long they may be.
        n_filler_tokens: of each context.
        seed: of the draw.

    Raises:
        DataError: the filler has shorter contexts, or the end of a question would be cut off.
    """
    start = int(cutter.prepend_bos)
    if not 0 < n_filler_tokens <= filler.tokens.shape[1] - start:
        raise DataError(
            f"{filler.corpus}: contexts give 1 to {filler.tokens.shape[1] - start} tokens of filler; got {n_filler_tokens}"
        )
    rng = random.Random(seed)
    rows = torch.tensor([rng.randrange(len(filler)) for _ in range(len(table))], dtype=torch.long)
    before = filler.tokens[rows, start : start + n_filler_tokens]
    answers = torch.ones_like(table.tokens, dtype=torch.bool) if table.answers is None else table.answers
    lost = cutter.context_size - n_filler_tokens
    if table.answers is not None and bool(answers[:, lost:].any()):
        raise DataError(
            f"{table.corpus}: behind {n_filler_tokens} tokens of filler a question does not fit into a context of {cutter.context_size}"
        )
    tokens = torch.cat([table.tokens[:, :start], before, table.tokens[:, start:]], dim=1)[:, : cutter.context_size]
    nothing = torch.zeros_like(before, dtype=torch.bool)
    counted = torch.cat([answers[:, :start], nothing, answers[:, start:]], dim=1)[:, : cutter.context_size]
    spans = None if table.spans is None else tuple(_shifted(spans, n_filler_tokens, lost) for spans in table.spans)
    return TokenTable(f"{table.corpus} behind {filler.corpus}", tokens, table.documents, counted, spans)


def _shifted(spans: Spans, by: int, lost: int) -> Spans:
    """Return where documents begin behind filler; what begins at or after `lost` is cut off."""
    return (spans[0], *((name, begin + by) for name, begin in spans[1:] if begin < lost))


# quantization ---------------------------------------------------------------------------------------------------------

_INPUT_AXES = {"W_Q": (1,), "W_K": (1,), "W_V": (1,), "W_O": (0, 1), "W_in": (0,), "W_gate": (0,), "W_out": (0,)}
"""Axes of a `HookedTransformer`'s matrices over which an output channel sums; heads first, where there are any."""

_INPUT_AXIS: dict[type[nn.Module], tuple[int, ...]] = {nn.Linear: (1,), Conv1D: (0,)}
"""The same of the modules of a bridge."""


@torch.no_grad()
def quantize(model: AnyHookedModel, n_bits: int) -> AnyHookedModel:
    """Clone a model and round its attention and MLP matrices to the nearest of `2 ** n_bits - 1` values for each output channel.

        scale = max |w| / (2 ** (n_bits - 1) - 1),    w' = scale * round(w / scale)

    Embeddings, unembedding, biases and norms stay, as is usual. Small changes of weights may vanish in rounding, and what they hid
    comes back (Zhang et al. 2024, arXiv 2410.16454).

    Args:
        model: a `HookedTransformer` or a bridge; it is left as it is.
        n_bits: of a rounded value.

    Raises:
        ConfigError: fewer than 2 bits.
        ModelError: no attention or MLP matrix was found, so nothing would be rounded; or as `clone_model`.
    """
    if n_bits < 2:
        raise ConfigError(f"n_bits must be at least 2 (one value on either side of 0); got {n_bits}")
    rounded = clone_model(model)
    matrices = list(_matrices(rounded))
    if not matrices:
        raise ModelError(
            f"no attention or MLP matrix was found in {model.cfg.model_name}; quantize knows nn.Linear and Conv1D in its blocks"
        )
    for matrix, axes in matrices:
        values = in_float32(matrix)  # in bfloat16 the values themselves would be rounded away from 8 bits
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
