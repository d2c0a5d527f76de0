"""What brings back the knowledge that one change of a model took away, on TEST text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mtsae_lens.data.contexts import TokenTable
from mtsae_lens.data.facts import is_fact_source
from mtsae_lens.experiments.benchmark.setup import BATCH_SIZE, Subject
from mtsae_lens.unlearning.attacks import dilute, quantised, relearn
from mtsae_lens.unlearning.changes import Change
from mtsae_lens.unlearning.finetuning.batches import sample_documents, split_by_document
from mtsae_lens.unlearning.finetuning.finetune import FinetuneSettings
from mtsae_lens.unlearning.measures.effects import EditEffect, edited_logits, measure_model

RELEARNING = FinetuneSettings(lr=3e-4, n_steps=60, batch_size=8, snapshots=(0, 5, 20, 60))
"""Of the full benchmark; a shorter one ends earlier."""
FILLER_SHARE = 0.5  # of a context
N_BITS = (8, 4)


def attacks(
    subject: Subject, change: Change, sizes: Sequence[int], seed: int, n_steps: int = RELEARNING.n_steps
) -> dict[str, Any]:
    """Loss on the forget text (nats per token) and exact recall, after each attack.

    Relearning is from so many documents as `sizes` says. Hook removal gives back the clean model by definition.
    """
    found = {"relearning": _relearning(subject, change, sizes, seed, n_steps), "dilution": _dilution(subject, change)}
    found["quantisation"] = {str(n_bits): _row(_quantised(subject, change, n_bits)) for n_bits in N_BITS}
    if subject.task_of.unseen is not None:
        table = subject.task.table(subject.task_of.unseen, "test", subject.lm.cutter)
        found["unseen"] = _row(_measure(subject, change, table))
    return found


def _row(effect: EditEffect) -> dict[str, float]:
    """`nll_clean` is that of the model before any change, under the same attack where it changes the text or the weights."""
    return {
        "nll": effect.mean(effect.nll_edited),
        "nll_clean": effect.mean(effect.nll_clean),
        "exact_recall": effect.exact_recall,
        "extraction_strength": effect.extraction_strength,
        "n_tokens": int(effect.n_tokens.sum()),
    }


def _measure(subject: Subject, change: Change, table: TokenTable) -> EditEffect:
    return measure_model(change.logits(subject.lm), subject.lm.model, subject.lm.cutter, table, BATCH_SIZE)


def _relearning(subject: Subject, change: Change, sizes: Sequence[int], seed: int, n_steps: int) -> dict[str, Any]:
    """Curves by what the attacker has: numbers of documents, and half of the people while the other half is measured."""
    lm, task = subject.lm, subject.task
    measured = task.table(task.forget, "test", lm.cutter)
    learned = subject.training_table(task.forget)
    snapshots = tuple(step for step in RELEARNING.snapshots if step <= n_steps)
    settings = replace(RELEARNING, n_steps=n_steps, snapshots=snapshots, seed=seed)
    sizes = sorted({min(k, len(set(learned.pieces.documents))) for k in sizes})  # an attacker has at most the text there is
    variants = (True, False) if change.edit is not None else (False,)
    curves: dict[str, Any] = {}
    for hook in variants:
        name = "hook in place" if hook else "without the hook" if change.edit is not None else "weights"
        curves[name] = {
            str(k): _curve(subject, change, sample_documents(learned, k, seed), measured, settings, hook=hook) for k in sizes
        }
    if is_fact_source(task.forget):
        some, _ = split_by_document(learned, 0.5, seed)
        others = _of_others(measured, some)
        curves["half of the people"] = {"others": _curve(subject, change, some, others, settings, hook=change.edit is not None)}
    return curves


def _of_others(measured: TokenTable, learned: TokenTable) -> TokenTable:
    return measured.only(set(measured.pieces.documents) - set(learned.pieces.documents))


def _curve(
    subject: Subject, change: Change, learned: TokenTable, measured: TokenTable, settings: FinetuneSettings, *, hook: bool
) -> list[dict[str, Any]]:
    points = relearn(
        subject.lm, learned, [measured], settings, weights=change.weights, edit=change.edit, hook_while_learning=hook
    )
    return [{"step": point.step} | _row(point.effects[0]) for point in points]


def _dilution(subject: Subject, change: Change) -> dict[str, Any]:
    """The forget text behind unrelated words."""
    lm, task = subject.lm, subject.task
    table = task.table(task.forget, "test", lm.cutter)
    filler = task.table(task.sources("far")[0], "test", lm.cutter)
    n_filler = int(FILLER_SHARE * lm.cutter.context_size)
    return _row(_measure(subject, change, dilute(table, filler, lm.cutter, n_filler)))


def _quantised(subject: Subject, change: Change, n_bits: int) -> EditEffect:
    lm = subject.lm
    rounded = quantised(change.weights or lm.model, n_bits)
    table = subject.task.table(subject.task.forget, "test", lm.cutter)
    clean = quantised(lm.model, n_bits)
    return measure_model(edited_logits(replace(lm, model=rounded), change.edit), clean, lm.cutter, table, BATCH_SIZE)
