"""Attack one change of a model, and measure the result on TEST text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.questions import is_question_source
from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.errors import ConfigError
from mtsae_lens.experiments.benchmark.cells import AttackOutcome, Attacks, RelearnedOutcome, RelearningCurve
from mtsae_lens.experiments.benchmark.setup import BATCH_SIZE, BenchmarkSetup
from mtsae_lens.records import fields_of
from mtsae_lens.unlearning.attacks import dilute, quantize, relearn
from mtsae_lens.unlearning.changes import Change
from mtsae_lens.unlearning.finetuning.batches import sample_documents, split_by_document
from mtsae_lens.unlearning.finetuning.finetune import FinetuneSettings
from mtsae_lens.unlearning.measures.effects import edited_logits, measure_model
from mtsae_lens.unlearning.measures.results import EditEffect
from mtsae_lens.unlearning.protocol import recovery_texts
from mtsae_lens.unlearning.recovery.attack import attack_recovery, measure_controls
from mtsae_lens.unlearning.recovery.perturbation import RecoverySettings
from mtsae_lens.unlearning.recovery.results import Recovery

RELEARNING = FinetuneSettings(lr=3e-4, n_steps=60, batch_size=8, snapshots=(0, 5, 20, 60))
"""Settings of the attacker in the full benchmark; a shorter benchmark ends earlier."""
FILLER_SHARE = 0.5  # of a context, at most
N_BITS = (8, 4)


def attack(
    setup: BenchmarkSetup,
    change: Change,
    sizes: Sequence[int],
    seed: int,
    n_steps: int = RELEARNING.n_steps,
    recovery: RecoverySettings | None = None,
) -> Attacks:
    """Attack a change in every way, and measure what the model knows of the forget text afterwards.

    Removing the hook is not tried, because it restores the clean model by definition.

    Args:
        setup: the models and tables of the task.
        change: an edit or other weights.
        sizes: numbers of documents that an attacker relearns from.
        seed: seed of the draws of documents and of the order of batches.
        n_steps: steps of relearning.
        recovery: how perturbations at the hook are searched; None for the default.
    """
    unseen = setup.task_of.unseen
    return Attacks(
        relearning=_relearning(setup, change, sizes, seed, n_steps),
        dilution=_dilution(setup, change),
        quantization={str(n_bits): _outcome(_quantized(setup, change, n_bits)) for n_bits in N_BITS},
        recovery=_recovery(setup, change, replace(recovery or RecoverySettings(), seed=seed)),
        unseen=None if unseen is None else _outcome(_measure(setup, change, setup.task.table(unseen, "test", setup.lm.cutter))),
    )


def _recovery(setup: BenchmarkSetup, change: Change, settings: RecoverySettings) -> Recovery:
    texts = recovery_texts(setup.lm, setup.task)
    controls = measure_controls(setup.lm, texts, settings, setup.reference)
    return attack_recovery(setup.lm, change, texts, settings, controls=controls)


def _outcome(effect: EditEffect) -> AttackOutcome:
    return AttackOutcome(
        nll=effect.mean(effect.nll_edited),
        nll_clean=effect.mean(effect.nll_clean),
        exact_recall=effect.exact_recall,
        extraction_strength=effect.extraction_strength,
        n_tokens=int(effect.n_tokens.sum()),
    )


def _measure(setup: BenchmarkSetup, change: Change, table: TokenTable) -> EditEffect:
    return measure_model(change.logits(setup.lm), setup.lm.model, setup.lm.cutter, table, BATCH_SIZE)


def _relearning(
    setup: BenchmarkSetup, change: Change, sizes: Sequence[int], seed: int, n_steps: int
) -> dict[str, dict[str, RelearningCurve]]:
    """Relearn from several numbers of documents, and from half of the people while the other half is measured."""
    lm, task = setup.lm, setup.task
    measured = task.table(task.forget, "test", lm.cutter)
    learned = setup.training_table(task.forget)
    snapshots = tuple(step for step in RELEARNING.snapshots if step <= n_steps)
    settings = replace(RELEARNING, n_steps=n_steps, snapshots=snapshots, seed=seed, first_layer=setup.first_trained_layer)
    sizes = sorted({min(k, len(set(learned.pieces.documents))) for k in sizes})  # no attacker has more documents than exist
    variants = (True, False) if change.edit is not None else (False,)
    curves: dict[str, dict[str, RelearningCurve]] = {}
    for hook in variants:
        name = "hook in place" if hook else "without the hook" if change.edit is not None else "weights"
        curves[name] = {
            str(k): _curve(setup, change, sample_documents(learned, k, seed), measured, settings, hook=hook) for k in sizes
        }
    if is_question_source(task.forget):
        some, _ = split_by_document(learned, 0.5, seed)
        others = _of_others(measured, some)
        curves["half of the people"] = {"others": _curve(setup, change, some, others, settings, hook=change.edit is not None)}
    return curves


def _of_others(measured: TokenTable, learned: TokenTable) -> TokenTable:
    return measured.only(set(measured.pieces.documents) - set(learned.pieces.documents))


def _curve(
    setup: BenchmarkSetup, change: Change, learned: TokenTable, measured: TokenTable, settings: FinetuneSettings, *, hook: bool
) -> RelearningCurve:
    points = relearn(
        setup.lm, learned, [measured], settings, weights=change.weights, edit=change.edit, hook_while_learning=hook
    )
    return tuple(RelearnedOutcome(step=point.step, **fields_of(_outcome(point.effects[0]))) for point in points)


def _dilution(setup: BenchmarkSetup, change: Change) -> AttackOutcome:
    """Measure the forget text after unrelated text in the same context."""
    lm, task = setup.lm, setup.task
    table = task.table(task.forget, "test", lm.cutter)
    filler = task.table(task.sources("far")[0], "test", lm.cutter)
    of_filler = filler.tokens.shape[1] - int(lm.cutter.prepend_bos)  # less than a context if it is questions
    n_filler = min(n_filler_tokens(table, lm.cutter), of_filler)
    return _outcome(_measure(setup, change, dilute(table, filler, lm.cutter, n_filler)))


def n_filler_tokens(table: TokenTable, cutter: ContextCutter) -> int:
    """Return how many tokens of unrelated text are put before the forget text: half a context, or what the longest question leaves.

    Args:
        table: text, of which what no longer fits is cut off, or questions, whose answers must stay.
        cutter: the length of a context.

    Raises:
        ConfigError: a question fills the context, so that no token fits beside it.
    """
    most = int(FILLER_SHARE * cutter.context_size)
    if table.answers is None:
        return most
    longest = table.tokens.shape[1]
    if longest >= cutter.context_size:
        raise ConfigError(
            f"{table.corpus}: expected a context_size of at least {longest + 1}, so that the attack by dilution has room for a token beside "
            f"the longest question, got {cutter.context_size}; give --context-size {longest + 1} or more"
        )
    return min(most, cutter.context_size - longest)


def _quantized(setup: BenchmarkSetup, change: Change, n_bits: int) -> EditEffect:
    lm = setup.lm
    rounded = quantize(change.weights or lm.model, n_bits)
    table = setup.task.table(setup.task.forget, "test", lm.cutter)
    clean = quantize(lm.model, n_bits)
    return measure_model(edited_logits(replace(lm, model=rounded), change.edit), clean, lm.cutter, table, BATCH_SIZE)
