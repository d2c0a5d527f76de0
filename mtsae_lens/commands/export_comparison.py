"""Compare an exported model with the edit at its hook."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mtsae_lens.commands.export_settings import Form
from mtsae_lens.data.lazy_logits import Logits, in_chunks, lazily
from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.progress import track
from mtsae_lens.records import Record
from mtsae_lens.reporting.page import Table
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.measures.effects import edited_logits, measure_edits, measure_model
from mtsae_lens.unlearning.measures.predictions import kl_of_logits
from mtsae_lens.unlearning.task import Role


@dataclass(frozen=True)
class ModelDistance(Record):
    """How far a model is from the clean one on a text, in nats per token."""

    nll_delta: float
    kl: float
    """`KL(clean || this model)`."""
    kl_from_hook: float | None = None
    """`KL(model with the edit at its hook || this model)`; absent where this is that model."""


@dataclass(frozen=True)
class ExportComparison(Record):
    """What an edit at its hook and the model that was written do to one text."""

    role: Role
    n_tokens: int
    hook: ModelDistance
    exported: ModelDistance
    hook_projection: ModelDistance | None = None
    """The always-open projection at the hook, of which `projected` is an imitation."""


@dataclass(frozen=True)
class ExportResult(Record):
    """What was written, and how far it is from the edit at its hook."""

    form: Form
    caveat: str
    """What the form is and is not."""
    comparison: dict[str, ExportComparison]
    """By corpus."""
    numbers: dict[str, int | float | list[float]]
    """Numbers of the form, such as the losses of a low-rank change."""

    def table(self) -> Table:
        """Make a table with one row per corpus: change of the loss at the hook and in what was written, and how far that is from the hook."""
        has_projection = self.form == "projected"
        header = [
            "corpus",
            "role",
            "at the hook",
            *(["projection at the hook"] if has_projection else []),
            "exported",
            "KL from the hook",
            "tokens",
        ]
        return Table(header, [_row(name, compared) for name, compared in self.comparison.items()])


def _row(name: str, compared: ExportComparison) -> list[Any]:
    projection, exported = compared.hook_projection, compared.exported
    return [
        name,
        compared.role,
        f"{compared.hook.nll_delta:+.3f}",
        *([] if projection is None else [f"{projection.nll_delta:+.3f}"]),
        f"{exported.nll_delta:+.3f}",
        f"{exported.kl_from_hook:.3g}",
        compared.n_tokens,
    ]


def compare(
    lm: HookedLM, table: TokenTable, edit: Edit, role: Role, exported: Logits, hook_projection: Logits | None = None
) -> ExportComparison:
    """Compare what an edit at its hook and other models do to a text.

    Args:
        lm: the clean model with its SAE.
        table: the text.
        edit: the edit at its hook.
        role: of the text.
        exported: the model that was written.
        hook_projection: for `projected`, the always-open projection at the hook.
    """
    (hook,) = measure_edits(lm, table, [edit])

    def distance(logits: Logits) -> ModelDistance:
        effect = measure_model(logits, lm.model, lm.cutter, table, lm.batch_size)
        return ModelDistance(effect.nll_delta, effect.mean(effect.kl), mean_kl(lm, table, edited_logits(lm, edit), logits))

    return ExportComparison(
        role=role,
        n_tokens=int(hook.n_tokens.sum()),
        hook=ModelDistance(hook.nll_delta, hook.mean(hook.kl)),
        exported=distance(exported),
        hook_projection=None if hook_projection is None else distance(hook_projection),
    )


@torch.no_grad()
def mean_kl(lm: HookedLM, table: TokenTable, target: Logits, model: Logits) -> float:
    """Compute `KL(target || model)` of the predictions of counted tokens, in nats per token.

    Args:
        lm: the model, for its tokenization.
        table: the text.
        target: the model that the other one should imitate.
        model: the other model.
    """
    total, n_tokens = 0.0, 0
    for tokens, counted, _ in track(lm.counted_batches(table), f"comparing with the hook on {table.corpus}", "batch"):
        both = [lazily(each, tokens)[:, :-1][counted] for each in (target, model)]
        total += float(in_chunks(kl_of_logits, both).sum())
        n_tokens += int(counted.sum())
    return total / max(n_tokens, 1)
