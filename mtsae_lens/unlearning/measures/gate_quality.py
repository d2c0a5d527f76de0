"""Measure how well a gate separates the forget text from other text, for every threshold, and how often it opens at its own threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Num
from scipy import stats
from torch import Tensor

from mtsae_lens.data.token_tables import Pieces, TokenTable
from mtsae_lens.errors import DataError
from mtsae_lens.progress import track
from mtsae_lens.records import Interval, Record
from mtsae_lens.splice.gate_interface import Gate
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.gating import observe
from mtsae_lens.unlearning.measures.bootstrap import grouped_interval
from mtsae_lens.unlearning.measures.detection import Detection, Scores, answer_starts, detection

AFTER_POSITIONS = (0, 8, 32)  # from the start of a context, after a phrase, after one or two sentences


def auroc(positives: Num[Tensor, " n"] | np.ndarray, negatives: Num[Tensor, " m"] | np.ndarray) -> float:
    """Compute the area under the ROC curve: the probability that a random positive scores higher than a random negative, with ties
    counted half.

    It is `U / (n m)` with the Mann-Whitney statistic U. The chance level is 0.5; 1 is perfect; below 0.5 the score points the wrong way.

    Args:
        positives: scores of the positives, `(n,)`.
        negatives: scores of the negatives, `(m,)`.

    Raises:
        DataError: there are no positives or no negatives.
    """
    scores = np.concatenate([np.asarray(positives, dtype=float), np.asarray(negatives, dtype=float)])
    n, m = len(positives), len(negatives)
    if not n or not m:
        raise DataError(f"expected scores of positives and negatives, got {n} positives and {m} negatives; give both")
    u = stats.rankdata(scores)[:n].sum() - n * (n + 1) / 2
    return float(u / (n * m))


@dataclass(frozen=True)
class PositionAUROC:
    """The AUROC over single positions, without the first `after` positions of each context."""

    after: int
    auroc: float  # chance level 0.5
    n_forget: int  # positions
    n_other: int


@dataclass(frozen=True)
class OpenShare:
    """How often a gate is open on a corpus, at its own threshold: the true-positive rate on forget text, the false-positive rate on
    other text.
    """

    positions: float  # share of unmasked positions; of questions, share of the positions where answers begin
    low: float  # lower end of its 95% interval over documents
    high: float
    contexts: float  # share of contexts in which it opens at all
    n_positions: int
    n_contexts: int
    n_documents: int

    @property
    def share(self) -> Interval:
        """Return the share of positions with its 95% interval over documents."""
        return Interval(self.positions, self.low, self.high)

    @property
    def is_of_answers(self) -> bool:
        """Return whether one position of each context was counted, as of questions. Records of earlier versions count all positions."""
        return self.n_positions == self.n_contexts


@dataclass(frozen=True)
class GateSeparation:
    """How a gate's score separates forget text from one other corpus, independently of the threshold."""

    by_position: tuple[PositionAUROC, ...]
    by_context: float  # AUROC over contexts, each represented by its highest score; chance level 0.5
    false_positives: OpenShare


@dataclass(frozen=True)
class GateQuality(Record):
    """How often one gate is open on the forget text and on other text, and how well its score separates them."""

    forget: str
    true_positives: OpenShare
    others: dict[str, GateSeparation]
    detection: tuple[Detection, ...] = ()
    """How soon it recognizes the forget text; empty in older records, and if no other corpus is of the same kind."""


@dataclass(frozen=True, eq=False)
class _Scored:
    """The scores of a gate on a corpus, and where it was open."""

    score: Float[Tensor, "context pos"]
    opened: Bool[Tensor, "context pos"]
    kept: Bool[Tensor, "context pos"]  # unmasked; of questions, only where the answer begins
    pieces: Pieces

    def after(self, first: int) -> Float[Tensor, " position"]:
        return self.score[:, first:][self.kept[:, first:]]

    @property
    def highest(self) -> Float[Tensor, " context"]:
        has_tokens = self.kept.any(dim=1)
        return self.score.masked_fill(~self.kept, -torch.inf).amax(dim=1)[has_tokens]


def measure_gate(
    lm: HookedLM,
    gate: Gate,
    forget: TokenTable,
    others: Mapping[str, TokenTable],
    *,
    after: Sequence[int] = AFTER_POSITIONS,
    seed: int = 0,
) -> GateQuality:
    """Measure a gate on forget text against every other corpus. BOS, separators and padding are left out. Of a question, only the position
    where its answer begins counts, because that is where an edit has to be on, and where a gate such as `KnownGroupsGate` is asked.

    The positions of a context are not independent, so the intervals resample documents. AUROCs over positions measure the gate token by
    token, those over contexts text by text.

    Args:
        lm: the model with its SAE.
        gate: the gate, causal or not.
        forget: the text to open on.
        others: retain corpora by name.
        after: numbers of positions to leave out at the start of each context; numbers as large as the contexts are skipped.
        seed: seed of the resampling.

    Raises:
        DataError: a corpus has no unmasked position.
    """
    positive = _scored(lm, gate, forget)
    separations, scores = {}, {}
    for name, table in others.items():
        negative = _scored(lm, gate, table)
        scores[name] = Scores(negative.score, negative.kept, table)
        by_position = tuple(
            PositionAUROC(first, auroc(ours, theirs), len(ours), len(theirs))
            for first in after
            if len(ours := positive.after(first)) and len(theirs := negative.after(first))
        )
        by_context = auroc(positive.highest, negative.highest)
        separations[name] = GateSeparation(by_position, by_context, _open_share(negative, seed))
    comparable = any((table.answers is None) == (forget.answers is None) for table in others.values())
    found = detection(Scores(positive.score, positive.kept, forget), scores, seed=seed) if comparable else ()
    return GateQuality(forget.corpus, _open_share(positive, seed), separations, found)


@torch.no_grad()
def _scored(lm: HookedLM, gate: Gate, table: TokenTable) -> _Scored:
    score, opened, kept = [], [], []
    for tokens in track(lm.batches(table), f"measuring the gate on {table.corpus}", "batch"):
        observed = observe(lm, gate, tokens)
        score.append(gate.score(observed).cpu().double())
        opened.append(gate.open_from(observed, None)[0].cpu())
        kept.append(~lm.masked(tokens).cpu())
    counted = torch.cat(kept) if table.answers is None else torch.cat(kept) & answer_starts(table)
    scored = _Scored(torch.cat(score), torch.cat(opened), counted, table.pieces)
    if not scored.kept.any():
        raise DataError(f"{table.corpus}: expected text to measure a gate on, got only special tokens; give another text")
    return scored


def _open_share(scored: _Scored, seed: int) -> OpenShare:
    opened = scored.opened & scored.kept
    values = opened[scored.kept].double()
    names = [scored.pieces.documents[piece] for piece in scored.pieces.of_token[scored.kept].tolist()]
    low, high = grouped_interval(values, names, seed)
    has_tokens = scored.kept.any(dim=1)
    return OpenShare(
        positions=values.mean().item(),
        low=low,
        high=high,
        contexts=opened.any(dim=1)[has_tokens].double().mean().item(),
        n_positions=len(values),
        n_contexts=int(has_tokens.sum()),
        n_documents=len(set(names)),
    )
