"""Measure how far a changed model is from the reference, a model trained without the forget text.

The goal of unlearning is that model, not the highest loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.lazy_logits import Logits, lazily
from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.errors import DataError
from mtsae_lens.progress import track
from mtsae_lens.records import Record
from mtsae_lens.unlearning.measures.effects import as_logits, measure_model
from mtsae_lens.unlearning.measures.results import EditEffect


@dataclass(frozen=True)
class TwoSample:
    """A two-sample Kolmogorov-Smirnov test between values of a changed model and of the reference."""

    ks: float  # largest difference of the two distribution functions, from 0 (indistinguishable from the reference) to 1
    p_value: float  # high if no difference is found; conservative, because both models read the same items
    n: int  # items per model


@dataclass(frozen=True)
class ReferenceDistance(Record):
    """The distance of a changed model to the reference on one corpus."""

    corpus: str
    nll_edited: float  # nats per token
    nll_reference: float
    nll_gap: float
    """Edited minus reference, in nats per token; 0 is best. Below 0, the model forgot less than a model trained without the text; above 0,
    it is damaged."""
    kl: float  # KL(reference || edited), nats per token; 0 if equal
    documents: TwoSample  # between the two models' losses per token, one for each document
    n_tokens: int
    kl_untouched: float | None = None
    """KL(reference || model before any change), nats per token; None in results of earlier versions."""


def distance_to_reference(
    edited: Logits, reference: AnyHookedModel, cutter: ContextCutter, table: TokenTable, batch_size: int = 16
) -> ReferenceDistance:
    """Measure the distance of a changed model to the reference on one corpus.

    Args:
        edited: the changed model, such as `edited_logits(lm, edit)`.
        reference: a model trained without the forget text, with the same tokenizer.
        cutter: says which predictions are counted.
        table: the text.
        batch_size: contexts per forward pass.

    Raises:
        DataError: the text has no counted token.
    """
    return distance_from_effect(measure_model(edited, reference, cutter, table, batch_size))


def distance_from_effect(effect: EditEffect) -> ReferenceDistance:
    """Compute the distance from an `EditEffect` that was measured with the reference in place of the clean model.

    Args:
        effect: the effect.

    Raises:
        DataError: the text has no counted token.
    """
    n_tokens = effect.by_document(effect.n_tokens)
    counted = n_tokens > 0
    if not counted.any():
        raise DataError(f"{effect.corpus}: expected tokens whose prediction is counted, got none; give another text")
    edited, reference = (
        effect.by_document(sums)[counted] / n_tokens[counted] for sums in (effect.nll_edited, effect.nll_clean)
    )
    return ReferenceDistance(
        corpus=effect.corpus,
        nll_edited=effect.mean(effect.nll_edited),
        nll_reference=effect.mean(effect.nll_clean),
        nll_gap=effect.nll_delta,
        kl=effect.mean(effect.kl),
        documents=two_sample(edited, reference),
        n_tokens=int(n_tokens.sum()),
    )


def two_sample(edited: Float[Tensor, " item"], reference: Float[Tensor, " item"]) -> TwoSample:
    """Compare two sets of values by a Kolmogorov-Smirnov test, which ignores which value belongs to which item.

    Args:
        edited: values of the changed model, such as a loss per document.
        reference: values of the reference.
    """
    result: Any = stats.ks_2samp(edited.numpy(), reference.numpy())
    return TwoSample(float(result.statistic), float(result.pvalue), min(len(edited), len(reference)))


@dataclass(frozen=True)
class TruthRatioDistance(Record):
    """The distance between the truth ratios of a changed model and of the reference.

    On forget questions TOFU calls the p-value "forget quality": high is best, and KS is 0 if the models cannot be told apart.
    """

    corpus: str
    questions: TwoSample
    median_log_ratio_edited: float  # above 0 if wrong answers are more likely than the right one
    median_log_ratio_reference: float


def truth_ratio_distance(
    edited: Logits,
    reference: AnyHookedModel,
    cutter: ContextCutter,
    right: TokenTable,
    wrong: Sequence[TokenTable],
    batch_size: int = 16,
) -> TruthRatioDistance:
    """Compare the truth ratios of two models over questions by a Kolmogorov-Smirnov test (TOFU: Maini et al. 2024, arXiv 2401.06121).

    Args:
        edited: the changed model.
        reference: a model trained without the facts.
        cutter: says which predictions are counted.
        right: questions with their answers, as `read_questions` returns them.
        wrong: the same questions with wrong answers, as `read_wrong_answers` returns them.
        batch_size: contexts per forward pass.
    """
    ours, theirs = (
        log_truth_ratios(model, cutter, right, wrong, batch_size).double() for model in (edited, as_logits(reference, cutter))
    )
    return TruthRatioDistance(right.corpus, two_sample(ours, theirs), ours.median().item(), theirs.median().item())


def log_truth_ratios(
    model: Logits, cutter: ContextCutter, right: TokenTable, wrong: Sequence[TokenTable], batch_size: int = 16
) -> Float[Tensor, " question"]:
    """Compute the log of TOFU's truth ratio of each question (Maini et al. 2024, arXiv 2401.06121), in nats.

        log [ mean_k p(wrong_k | question)^(1 / |wrong_k|)  /  p(right | question)^(1 / |right|) ]

    where `|answer|` is its number of tokens. Below 0 the model prefers the right answer. For a model that knows nothing it is slightly
    above 0, because it compares the log of a mean with a single term. Far above 0, the model avoids the truth, which reveals as much as
    knowing it. KS is invariant under the logarithm.

    Args:
        model: the model.
        cutter: says which predictions are counted.
        right: questions with their answers.
        wrong: the same questions with wrong answers, at least one table.
        batch_size: contexts per forward pass.

    Returns:
        One value per question.

    Raises:
        DataError: there are no wrong answers, a table holds other questions, or a question has no answer.
    """
    if not wrong or any(table.documents != right.documents for table in wrong):
        raise DataError(
            "expected at least one table of wrong answers to the same questions in the same order, got other questions or no table; "
            "use read_wrong_answers"
        )
    scores = torch.stack([_mean_log_prob(model, cutter, table, batch_size) for table in wrong])
    mean = scores.logsumexp(dim=0) - torch.log(torch.tensor(float(len(wrong))))
    return mean - _mean_log_prob(model, cutter, right, batch_size)


@torch.no_grad()
def _mean_log_prob(model: Logits, cutter: ContextCutter, table: TokenTable, batch_size: int) -> Float[Tensor, " question"]:
    """Compute the log-probability per answer token, for each question."""
    rows = []
    for tokens, counted, _ in track(table.batches(cutter, batch_size), f"measuring answers of {table.corpus}", "batch"):
        n_tokens = counted.sum(dim=1)
        if not n_tokens.all():
            raise DataError(
                f"{table.corpus}: expected an answer in every question, got one without; give questions with answers"
            )
        nll = lazily(model, tokens)[:, :-1].nll(tokens[:, 1:]).cpu()
        rows.append(-(nll * counted).sum(dim=1) / n_tokens)
    return torch.cat(rows)
