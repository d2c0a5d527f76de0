"""How well a gate tells the text to forget from other text, wherever its threshold lies and where it was set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Num
from scipy import stats
from torch import Tensor

from mtsae_lens.data.contexts import Pieces, TokenTable
from mtsae_lens.errors import DataError
from mtsae_lens.progress import track
from mtsae_lens.records import Interval, Record
from mtsae_lens.splice.gates import Gate
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.measures.bootstrap import grouped_interval

AFTER_POSITIONS = (0, 8, 32)  # from the start; after a phrase; after a sentence or two


def auroc(positives: Num[Tensor, " n"] | np.ndarray, negatives: Num[Tensor, " m"] | np.ndarray) -> float:
    """Compute the area under the ROC curve: how often a random positive scores higher than a random negative, ties counted half.

    `U / (n m)` with the Mann-Whitney statistic U. Chance level 0.5; 1 is perfect; below 0.5 the score points the wrong way.

    Raises:
        DataError: nothing on one side.
    """
    scores = np.concatenate([np.asarray(positives, dtype=float), np.asarray(negatives, dtype=float)])
    n, m = len(positives), len(negatives)
    if not n or not m:
        raise DataError(f"an AUROC needs scores on both sides; got {n} positives and {m} negatives")
    u = stats.rankdata(scores)[:n].sum() - n * (n + 1) / 2
    return float(u / (n * m))


@dataclass(frozen=True)
class PositionAUROC:
    """AUROC over single positions, the first `after` positions of each context left out."""

    after: int
    auroc: float  # chance 0.5
    n_forget: int  # positions
    n_other: int


@dataclass(frozen=True)
class OpenShare:
    """How often a gate is open on a corpus, at its own threshold: the true-positive rate on forget text, elsewhere the false-positive rate."""

    positions: float  # share of unmasked positions
    low: float  # 95% interval of it over documents
    high: float
    contexts: float  # share of contexts in which it opens at all
    n_positions: int
    n_contexts: int
    n_documents: int

    @property
    def share(self) -> Interval:
        """The share of positions, with its 95% interval over documents."""
        return Interval(self.positions, self.low, self.high)


@dataclass(frozen=True)
class GateSeparation:
    """How a gate's score tells forget text from one other corpus, whatever the threshold."""

    by_position: tuple[PositionAUROC, ...]
    by_context: float  # AUROC over contexts, each by its highest score; chance 0.5
    false_positives: OpenShare


@dataclass(frozen=True)
class GateQuality(Record):
    """How often one gate is open on the forget text and on other text, and how well its score tells them apart."""

    forget: str
    true_positives: OpenShare
    others: dict[str, GateSeparation]


@dataclass(frozen=True, eq=False)
class _Scored:
    """The scores of a gate on a corpus, and where it was open."""

    score: Float[Tensor, "context pos"]
    opened: Bool[Tensor, "context pos"]
    kept: Bool[Tensor, "context pos"]  # unmasked
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
    """Measure a gate on forget text against each other corpus; BOS, separators and padding never count.

    Positions of a context are far from independent, so the intervals resample documents; AUROCs over positions say how the gate does
    token by token, those over contexts how it does text by text.

    Args:
        lm: the model with its SAE.
        gate: any, causal or not.
        forget: the text to open on.
        others: retain corpora by name.
        after: leave out so many positions at the start of each context; those as long as the contexts are skipped.
        seed: of the resampling.

    Raises:
        DataError: a corpus without an unmasked position.
    """
    positive = _scored(lm, gate, forget)
    separations = {}
    for name, table in others.items():
        negative = _scored(lm, gate, table)
        by_position = tuple(
            PositionAUROC(first, auroc(ours, theirs), len(ours), len(theirs))
            for first in after
            if len(ours := positive.after(first)) and len(theirs := negative.after(first))
        )
        by_context = auroc(positive.highest, negative.highest)
        separations[name] = GateSeparation(by_position, by_context, _open_share(negative, seed))
    return GateQuality(forget.corpus, _open_share(positive, seed), separations)


@torch.no_grad()
def _scored(lm: HookedLM, gate: Gate, table: TokenTable) -> _Scored:
    score, opened, kept = [], [], []
    for tokens in track(lm.batches(table), f"measuring the gate on {table.corpus}", "batch"):
        feature_acts = lm.feature_acts(tokens)
        score.append(gate.score(feature_acts).cpu().double())
        opened.append(gate.open_from(feature_acts, None)[0].cpu())
        kept.append(~lm.masked(tokens).cpu())
    scored = _Scored(torch.cat(score), torch.cat(opened), torch.cat(kept), table.pieces)
    if not scored.kept.any():
        raise DataError(f"{table.corpus}: nothing but special tokens; a gate needs text to be measured on")
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
