"""Measure how soon a gate recognizes the forget text: its true-positive rate at a fixed false-positive rate, by tokens read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.errors import DataError
from mtsae_lens.records import Interval
from mtsae_lens.unlearning.measures.bootstrap import CONFIDENCE

AFTER_TOKENS = (4, 8, 16, 32)
FALSE_POSITIVE_RATE = 0.01
N_RESAMPLES = 500


@dataclass(frozen=True)
class Detection:
    """The share of forget contexts in which a gate's score exceeds that of all but 1% of the other contexts, after as many tokens."""

    after: int
    """Tokens read, special tokens not counted; 0 where the answer of a question begins."""
    rate: float
    low: float
    """Lower end of its 95% interval; forget documents and other documents are resampled, and the threshold is set anew."""
    high: float
    n_forget: int
    """Contexts."""
    n_documents: int
    """Documents of the forget contexts."""
    n_other: int

    @property
    def share(self) -> Interval:
        """Return the share with its 95% interval over documents."""
        return Interval(self.rate, self.low, self.high)


def answer_starts(table: TokenTable) -> Bool[Tensor, "n pos"]:
    """Return a mask of the positions where answers begin: those from which the first token of each answer is predicted.

    Args:
        table: questions.

    Returns:
        A mask `(n, pos)`, True at one position of each context.
    """
    assert table.answers is not None
    at = torch.zeros_like(table.answers)
    at[torch.arange(len(at)), table.answers.float().argmax(dim=1) - 1] = True
    return at


@dataclass(frozen=True, eq=False)
class Scores:
    """A gate's scores on one corpus.

    Args:
        score: score at each position.
        kept: unmasked positions.
        table: the contexts.
    """

    score: Float[Tensor, "context pos"]
    kept: Bool[Tensor, "context pos"]
    table: TokenTable

    def after(self, n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the scores after as many tokens, and the document of each.

        Args:
            n_tokens: number of tokens; 0 for the position where the answer begins.
        """
        at = self.kept & (self.kept.cumsum(dim=1) == n_tokens) if n_tokens else answer_starts(self.table)
        pieces = self.table.pieces
        names = np.array([pieces.documents[piece] for piece in pieces.of_token[at].tolist()])
        return self.score[at].double().numpy(), names


def detection(
    forget: Scores, others: Mapping[str, Scores], *, seed: int = 0, rate: float = FALSE_POSITIVE_RATE
) -> tuple[Detection, ...]:
    """Compute the true-positive rate at a false-positive rate, after 4, 8, 16 and 32 tokens, or where answers begin.

    The false-positive rate is a mean over the other corpora, each with equal weight, after as many tokens. If the forget text is
    questions, only the other questions are used.

    Args:
        forget: scores on the text to open on.
        others: scores on text to keep, by name.
        seed: seed of the resampling.
        rate: false-positive rate.

    Returns:
        One row for each number of tokens that some context of both kinds has.

    Raises:
        DataError: there is no other corpus of the same kind.
    """
    of_questions = forget.table.answers is not None
    same_kind = [scores for scores in others.values() if (scores.table.answers is not None) == of_questions]
    if not same_kind:
        raise DataError(
            f"{forget.table.corpus}: expected other {'questions' if of_questions else 'text'} to compare with, got none; give some"
        )
    rows = []
    for n_tokens in (0,) if of_questions else AFTER_TOKENS:
        positives, names = forget.after(n_tokens)
        negatives = [found for scores in same_kind if len((found := scores.after(n_tokens))[0])]
        if len(positives) and negatives:
            rows.append(_row(n_tokens, positives, names, negatives, rate, np.random.default_rng(seed % 2**32)))
    return tuple(rows)


def _row(
    after: int,
    positives: np.ndarray,
    names: np.ndarray,
    negatives: Sequence[tuple[np.ndarray, np.ndarray]],
    rate: float,
    rng: np.random.Generator,
) -> Detection:
    values = np.concatenate([scores for scores, _ in negatives])
    order = np.argsort(-values, kind="stable")
    values = values[order]

    def true_positives(of_forget: np.ndarray, of_others: Sequence[np.ndarray]) -> np.ndarray:
        shares = [w / np.maximum(w.sum(axis=1, keepdims=True), 1) / len(of_others) for w in of_others]
        opened = np.concatenate(shares, axis=1)[:, order].cumsum(axis=1)
        threshold = values[(opened > rate + 1e-12).argmax(axis=1)]
        hits = (positives > threshold[:, None]) * of_forget
        return hits.sum(axis=1) / of_forget.sum(axis=1)

    point = true_positives(np.ones((1, len(positives))), [np.ones((1, len(scores))) for scores, _ in negatives])
    drawn = true_positives(_resampled(names, rng), [_resampled(of_other, rng) for _, of_other in negatives])
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Detection(after, float(point[0]), float(low), float(high), len(positives), len(set(names)), len(values))


def _resampled(names: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw how often each context occurs in each resample of the documents, `(resample, context)`."""
    documents, place = np.unique(names, return_inverse=True)
    n = len(documents)
    return rng.multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES).astype(float)[:, place]
