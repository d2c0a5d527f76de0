"""How far a changed model is from one that never saw what is to be forgotten: the goal is that model, not the highest loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.contexts import ContextCutter, TokenTable
from mtsae_lens.data.lazy_logits import Logits, lazily
from mtsae_lens.errors import DataError
from mtsae_lens.progress import track
from mtsae_lens.records import Record
from mtsae_lens.unlearning.measures.effects import EditEffect, as_logits, measure_model


@dataclass(frozen=True)
class TwoSample:
    """Two-sample Kolmogorov-Smirnov test between a changed model's values and the reference's."""

    ks: float  # largest gap between the two distribution functions, 0 to 1; 0: indistinguishable from the reference
    p_value: float  # high: no difference seen. Both models saw the same items, so it is conservative
    n: int  # items on each side


@dataclass(frozen=True)
class ReferenceDistance(Record):
    """How far a changed model is from a reference on one corpus."""

    corpus: str
    nll_edited: float  # nats per token
    nll_reference: float
    nll_gap: float
    """Edited minus reference, nats per token; 0 is best. Below 0: forgets less than a model that never saw the text; above 0 overshoots,
    which is damage."""
    kl: float  # KL(reference || edited), nats per token; 0 if equal
    documents: TwoSample  # between the two models' losses per token of each document
    n_tokens: int


def distance_to_reference(
    edited: Logits, reference: AnyHookedModel, cutter: ContextCutter, table: TokenTable, batch_size: int = 16
) -> ReferenceDistance:
    """Measure how far a changed model is from a reference on one corpus.

    Args:
        edited: the changed model, such as `edited_logits(lm, edit)`.
        reference: a model trained without the forget text, with the same tokenizer.
        cutter: says which predictions count.
        table: the text.
        batch_size: contexts in a forward pass.

    Raises:
        DataError: no counted token.
    """
    return distance_from_effect(measure_model(edited, reference, cutter, table, batch_size))


def distance_from_effect(effect: EditEffect) -> ReferenceDistance:
    """Compute the distance from an `EditEffect` that was measured with the reference in the place of the clean model.

    Raises:
        DataError: no counted token.
    """
    n_tokens = effect.by_document(effect.n_tokens)
    counted = n_tokens > 0
    if not counted.any():
        raise DataError(f"{effect.corpus}: no token in it whose prediction counts")
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
    """Compare two sets of values by Kolmogorov-Smirnov, such as a loss per document; blind to which value belongs to which item."""
    result: Any = stats.ks_2samp(edited.numpy(), reference.numpy())
    return TwoSample(float(result.statistic), float(result.pvalue), min(len(edited), len(reference)))


@dataclass(frozen=True)
class TruthRatioDistance(Record):
    """How far the truth ratios of a changed model are from those of a reference.

    On forget questions TOFU calls the p-value "forget quality": high is best, and its KS is 0 where the models cannot be told apart.
    """

    corpus: str
    questions: TwoSample
    median_log_ratio_edited: float  # above 0: wrong answers are likelier than the right one
    median_log_ratio_reference: float


def truth_ratio_distance(
    edited: Logits,
    reference: AnyHookedModel,
    cutter: ContextCutter,
    right: TokenTable,
    wrong: Sequence[TokenTable],
    batch_size: int = 16,
) -> TruthRatioDistance:
    """Compare by Kolmogorov-Smirnov the truth ratios of two models over questions (TOFU: Maini et al. 2024, arXiv 2401.06121).

    Args:
        edited: the changed model.
        reference: a model that never met the facts.
        cutter: says which predictions count.
        right: questions with their answers, as `read_questions` gives them.
        wrong: the same questions with wrong answers, as `read_wrong_answers` gives them.
        batch_size: contexts in a forward pass.
    """
    ours, theirs = (
        log_truth_ratios(model, cutter, right, wrong, batch_size).double() for model in (edited, as_logits(reference, cutter))
    )
    return TruthRatioDistance(right.corpus, two_sample(ours, theirs), ours.median().item(), theirs.median().item())


def log_truth_ratios(
    model: Logits, cutter: ContextCutter, right: TokenTable, wrong: Sequence[TokenTable], batch_size: int = 16
) -> Float[Tensor, " question"]:
    """Compute the log of TOFU's truth ratio of each question (Maini et al. 2024, arXiv 2401.06121), in nats:

        log [ mean_k p(wrong_k | question)^(1 / |wrong_k|)  /  p(right | question)^(1 / |right|) ]

    with `|answer|` its number of tokens. Below 0 the model prefers the right answer. In a model that knows nothing it is a little above 0 (the
    log of a mean against one term); far above, the model avoids the truth, which tells as much as knowing it. KS does not
    change under the logarithm.

    Raises:
        DataError: no wrong answers, tables of other questions, or a question without an answer.
    """
    if not wrong or any(table.documents != right.documents for table in wrong):
        raise DataError("wrong answers must be to the same questions in the same order, at least one table of them")
    scores = torch.stack([_mean_log_prob(model, cutter, table, batch_size) for table in wrong])
    mean = scores.logsumexp(dim=0) - torch.log(torch.tensor(float(len(wrong))))
    return mean - _mean_log_prob(model, cutter, right, batch_size)


@torch.no_grad()
def _mean_log_prob(model: Logits, cutter: ContextCutter, table: TokenTable, batch_size: int) -> Float[Tensor, " question"]:
    """Compute the log-probability per answer token."""
    rows = []
    for tokens, counted, _ in track(table.batches(cutter, batch_size), f"measuring answers of {table.corpus}", "batch"):
        n_tokens = counted.sum(dim=1)
        if not n_tokens.all():
            raise DataError(f"{table.corpus}: a question without an answer that counts")
        nll = lazily(model, tokens)[:, :-1].nll(tokens[:, 1:]).cpu()
        rows.append(-(nll * counted).sum(dim=1) / n_tokens)
    return torch.cat(rows)
