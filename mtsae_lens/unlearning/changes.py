"""Measure a change of a model, either an edit at a hook or a change of the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.lazy_logits import Logits
from mtsae_lens.data.questions import is_question_source, read_wrong_answers
from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.progress import track
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.measures.bootstrap import delta_interval
from mtsae_lens.unlearning.measures.calibration import calibrated_loss, max_tokens
from mtsae_lens.unlearning.measures.distance import TruthRatioDistance, distance_to_reference, truth_ratio_distance
from mtsae_lens.unlearning.measures.effects import as_logits, edited_logits, measure_edits, measure_model
from mtsae_lens.unlearning.measures.gate_quality import measure_gate
from mtsae_lens.unlearning.measures.generations import Decoding, Sample, continue_texts, decode_samples, generation_health
from mtsae_lens.unlearning.measures.results import EditEffect, EditLoss
from mtsae_lens.unlearning.results import (
    CorpusEffect,
    DocumentEffect,
    EditedCorpus,
    FurtherMeasures,
    GenerationComparison,
    RandomControl,
)
from mtsae_lens.unlearning.task import SPARED, Role, Task

PROMPT_SHARE = 8  # a prompt is an eighth of a context; a question's prompt ends before the answer
N_GENERATED = 16  # texts that are continued per corpus


@dataclass(frozen=True, eq=False)
class Change:
    """A change of a model: an edit of the clean model, other weights, or neither."""

    edit: Edit | None = None
    weights: AnyHookedModel | None = None

    def logits(self, lm: HookedLM) -> Logits:
        """Return the changed model as a function from tokens to logits.

        Args:
            lm: the clean model with its SAE.
        """
        return edited_logits(replace(lm, model=self.weights or lm.model), self.edit)

    def effects(self, lm: HookedLM, tables: Mapping[str, TokenTable]) -> dict[str, EditEffect]:
        """Measure the effect of the change on every corpus.

        Args:
            lm: the clean model with its SAE.
            tables: contexts by source.

        Returns:
            Effects by source.
        """
        if self.weights is None and self.edit is not None:
            return {source: measure_edits(lm, table, [self.edit])[0] for source, table in tables.items()}
        return {s: measure_model(self.logits(lm), lm.model, lm.cutter, t, lm.batch_size) for s, t in tables.items()}


def summarize_effect(effect: EditEffect, seed: int) -> CorpusEffect:
    """Summarize an effect on one corpus, with a 95% interval over documents.

    Args:
        effect: what was measured.
        seed: seed of the resampling of documents.

    Returns:
        Losses in nats per counted token, and shares between 0 and 1.
    """
    return CorpusEffect(**_effect_fields(effect, seed))


def summarize_edit(effect: EditEffect, seed: int, role: Role, nll_reference: float | None) -> EditedCorpus:
    """Summarize the effect of the chosen edit on a corpus of its task, together with the loss of the reference.

    Args:
        effect: what was measured.
        seed: seed of the resampling of documents.
        role: role of the corpus in the task.
        nll_reference: loss of the reference, in nats per token; None without a reference.
    """
    return EditedCorpus(**_effect_fields(effect, seed), role=role, nll_reference=nll_reference)


def _effect_fields(effect: EditEffect, seed: int) -> Any:
    delta, n_tokens = (effect.by_document(sums) for sums in (effect.nll_edited - effect.nll_clean, effect.n_tokens))
    has_tokens = n_tokens > 0  # a resample that holds only documents without tokens would have no mean
    low, high = delta_interval(delta[has_tokens], n_tokens[has_tokens], seed)
    clean, edited = effect.mean(effect.nll_clean), effect.mean(effect.nll_edited)
    return {
        "nll_clean": clean,
        "nll_edited": edited,
        "perplexity_clean": math.exp(min(clean, 700.0)),
        "perplexity_edited": math.exp(min(edited, 700.0)),
        "nll_delta": effect.nll_delta,
        "nll_delta_low": low,
        "nll_delta_high": high,
        "kl": effect.mean(effect.kl),
        "top1_agreement": effect.top1_agreement,
        "exact_memorisation": effect.exact_memorisation,
        "extraction_strength": effect.extraction_strength,
        "exact_recall": effect.exact_recall,
        "gate_open": effect.gate_open,
        "n_tokens": int(effect.n_tokens.sum()),
        "n_contexts": len(effect.documents),
        "n_documents": int(has_tokens.sum()),
    }


def summarize_documents(effect: EditEffect) -> tuple[DocumentEffect, ...]:
    """Summarize an effect for each document (for questions: each person). Documents without a counted token are left out.

    Args:
        effect: what was measured.
    """
    counted = (effect.n_tokens > 0).double()
    whole = counted * (effect.hits == effect.n_tokens)
    sums = (effect.n_tokens, effect.nll_clean, effect.nll_edited, effect.kl, effect.agreements, effect.hits, counted, whole)
    columns = [effect.by_document(column).tolist() for column in sums]
    return tuple(
        DocumentEffect(
            document=name,
            n_tokens=int(n),
            nll_clean=c / n,
            nll_edited=e / n,
            kl=k / n,
            top1_agreement=a / n,
            exact_memorisation=h / n,
            n_contexts=int(contexts),
            exact_recall=recalled / contexts,
        )
        for name, n, c, e, k, a, h, contexts, recalled in zip(dict.fromkeys(effect.documents), *columns, strict=True)
        if n
    )


def pool_draws(effects: Sequence[EditLoss]) -> RandomControl:
    """Pool the effects of several random draws on the same corpus.

    Args:
        effects: one effect per draw.

    Returns:
        The mean loss over the draws, and the smallest and largest change of the loss.
    """
    deltas = [effect.nll_delta for effect in effects]
    first = effects[0]
    clean, mean = first.mean(first.nll_clean), sum(deltas) / len(deltas)
    return RandomControl(
        nll_clean=clean,
        nll_edited=clean + mean,
        nll_delta=mean,
        nll_delta_min=min(deltas),
        nll_delta_max=max(deltas),
        n_draws=len(effects),
        n_tokens=int(first.n_tokens.sum()),
    )


def measure_further(lm: HookedLM, task: Task, change: Change, reference: AnyHookedModel | None, seed: int) -> FurtherMeasures:
    """Measure on TEST what takes more than one pass over the text.

    Args:
        lm: the clean model with its SAE.
        task: the corpora.
        change: an edit, other weights, or neither.
        reference: the model trained without the forget text; None without one.
        seed: seed of the resampling of documents.

    Returns:
        Calibrated loss, gate quality, distance to the reference, truth ratios and generations.
    """
    forget = task.table(task.forget, "test", lm.cutter)
    tune = task.table(task.forget, "tune", lm.cutter)
    calibrated = calibrated_loss(
        change.logits(lm),
        as_logits(lm.model, lm.cutter),
        lm.cutter,
        tune,
        forget,
        max_tokens=max_tokens(lm.model.cfg.d_vocab),
        batch_size=lm.batch_size,
    )
    gate = distance = truth_ratio = None
    if change.edit is not None:
        gate = measure_gate(lm, change.edit.gate, forget, task.tables("test", lm.cutter, SPARED), seed=seed)
    if reference is not None:
        distance = distance_to_reference(change.logits(lm), reference, lm.cutter, forget, lm.batch_size)
        untouched = distance_to_reference(as_logits(lm.model, lm.cutter), reference, lm.cutter, forget, lm.batch_size)
        distance = replace(distance, kl_untouched=untouched.kl)
        if is_question_source(task.forget):
            truth_ratio = _truth_ratios(lm, task, change, reference, forget)
    generation, shown = _generations(lm, task, change)
    return FurtherMeasures(
        calibrated_nll_delta=calibrated.nll_delta,
        gate=gate,
        reference=distance,
        truth_ratio=truth_ratio,
        generation=generation,
        samples=shown,
    )


def _truth_ratios(
    lm: HookedLM, task: Task, change: Change, reference: AnyHookedModel, forget: TokenTable
) -> TruthRatioDistance:
    wrong = read_wrong_answers(task.forget, "test", lm.cutter, len(forget), seed=task.seed)
    return truth_ratio_distance(change.logits(lm), reference, lm.cutter, forget, wrong, lm.batch_size)


def _generations(
    lm: HookedLM, task: Task, change: Change
) -> tuple[dict[str, GenerationComparison], dict[str, tuple[Sample, ...]]]:
    """Continue the beginnings of held-out texts greedily. For questions, the prompt is the first words of the sentence."""
    health: dict[str, GenerationComparison] = {}
    shown: dict[str, tuple[Sample, ...]] = {}
    if change.edit is not None and not change.edit.gate.causal:
        return health, shown
    sources = (task.forget, *task.sources("near")[:1], *task.sources("far")[:1])
    for source in track(sources, "continuing texts", "text"):
        table = task.table(source, "test", lm.cutter)
        table = table.rows(range(min(N_GENERATED, len(table))))
        decoding = _decoding(lm, table)
        clean = continue_texts(lm, table, decoding)
        changed = continue_texts(lm, table, decoding, edit=change.edit, model=change.weights)
        health[source] = GenerationComparison(generation_health(lm, clean), generation_health(lm, changed))
        shown[source] = decode_samples(lm, clean, changed, n_samples=4)
    return health, shown


def _decoding(lm: HookedLM, table: TokenTable) -> Decoding:
    special = lm.cutter.special_positions(table.tokens)[:, 1:]
    shortest = int((~special).sum(dim=1).min()) if special.any() else table.tokens.shape[1]
    if table.spans is not None:  # packed: at least half of the prompts end before the first separator
        shortest = int((special.cumsum(dim=1) == 0).sum(dim=1).median()) + 1
    n_prompt = max(2, min(lm.cutter.context_size // PROMPT_SHARE, shortest))
    return Decoding(n_prompt_tokens=n_prompt, n_new_tokens=min(40, lm.model.cfg.n_ctx - n_prompt))
