"""Set a gate's threshold such that a stated false-positive rate holds on documents that it has not seen.

The unit is the document, and for invented people the person, because positions of one document are not exchangeable with those of another.
The loss of a document is the share of its positions at which the gate is open. Conformal risk control (Angelopoulos et al. 2022, arXiv
2208.02814) takes the lowest threshold with

    (sum_i share_i(threshold) + 1) / (n + 1) <= rate

Then the expected share in a new document is at most `rate`, if the new document and the n documents here are exchangeable: drawn from the
same text in the same way, and none of them read when the gate was fitted. It holds for any gate, but not for text of another kind.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mtsae_lens.data.documents import BIOGRAPHIES
from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.errors import DataError
from mtsae_lens.progress import track
from mtsae_lens.splice.gate_interface import ThresholdGate
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.gating import GateT, observe, sampled


def conformal_threshold(scores: Sequence[Float[Tensor, " _"]], rate: float) -> float:
    """Compute the lowest threshold whose false-positive rate is at most `rate` in a new document, in expectation.

    Args:
        scores: for each document, the gate's score at its positions.
        rate: false-positive rate, between 0 and 1.

    Returns:
        The threshold; a gate is open where its score is above it.

    Raises:
        DataError: with so few documents no threshold is enough.
    """
    scores = [of_document.double() for of_document in scores if len(of_document)]
    budget = rate * (len(scores) + 1) - 1
    if budget < -1e-9 or not scores:
        raise DataError(
            f"expected at least {math.ceil(1 / rate - 1 - 1e-9)} documents of near text for a false-positive rate of {rate:g}, got "
            f"{len(scores)}; give more text (--contexts-per-split), raise the rate, or set the threshold by quantile"
        )
    weights = torch.cat([torch.full_like(of_document, 1 / len(of_document)) for of_document in scores])
    values, place = torch.cat(scores).unique(return_inverse=True)  # in ascending order
    at = torch.zeros_like(values).index_add(0, place, weights)
    above = at.flip(0).cumsum(0).flip(0) - at
    return values[int((above <= budget + 1e-9).nonzero()[0])].item()


def conformal_thresholds_at(
    lm: HookedLM, gate: GateT, tables: Sequence[TokenTable], false_positive_rates: Sequence[float]
) -> list[GateT]:
    """Set the threshold of a gate by `conformal_threshold`, on the documents of all texts together, and of all questions together.

    The higher of the two thresholds is used, so the rate holds for both; it is at least the gate's `lowest_threshold`.
    For questions, only the position where the answer begins is used.

    Args:
        lm: the model with its SAE.
        gate: the gate.
        tables: texts that the gate was not fitted on.
        false_positive_rates: expected shares of open positions in a new document, between 0 and 1.

    Returns:
        One gate per rate.

    Raises:
        DataError: there are too few documents for a rate.
    """
    kinds: dict[bool, list[Tensor]] = defaultdict(list)
    for table in track(tables, "setting the gate", "text"):
        kinds[table.answers is None] += document_scores(lm, gate, table)
    highest = [max(conformal_threshold(scores, rate) for scores in kinds.values()) for rate in false_positive_rates]
    return [gate.with_threshold(max(threshold, gate.lowest_threshold)) for threshold in highest]


def apart(fitted: Sequence[TokenTable], held_out: Sequence[TokenTable]) -> tuple[list[TokenTable], list[TokenTable]]:
    """Make sure that no unit is in both: of the units that are, every other one is left out of the fit, and the rest of the calibration.

    The same people are asked about on SELECT and TUNE. A gate knows the people that it was fitted on, so they would say nothing about
    strangers.

    Args:
        fitted: texts that a gate is fitted on.
        held_out: texts that its threshold is set on.

    Returns:
        Both, without these documents; a text of which nothing is left is left out.
    """
    ours, theirs = ({unit(name) for table in tables for name in table.pieces.documents} for tables in (fitted, held_out))
    shared = sorted(ours & theirs)
    return _without(fitted, set(shared[::2])), _without(held_out, set(shared[1::2]))


def _without(tables: Sequence[TokenTable], units: set[str]) -> list[TokenTable]:
    kept = (split_by_unit(table, units)[1] for table in tables)
    return [table for table in kept if table is not None]


def split_by_unit(table: TokenTable, units: set[str]) -> tuple[TokenTable | None, TokenTable | None]:
    """Return the contexts that hold one of the units, and the other contexts; None for none.

    Args:
        table: the contexts.
        units: names of people or documents, as `unit` returns them.
    """
    holds = [not units.isdisjoint(unit(span[0]) for span in spans) for spans in table.all_spans]
    rows = ([row for row, found in enumerate(holds) if found is wanted] for wanted in (True, False))
    having, others = (table.rows(of) if of else None for of in rows)
    return having, others


def unit(document: str) -> str:
    """Return what is exchangeable: the person of a biography or question, or else the document.

    Args:
        document: name of a document.
    """
    parts = document.split("/")
    return parts[1] if parts[0] == BIOGRAPHIES and len(parts) == 3 else document


@torch.no_grad()
def document_scores(lm: HookedLM, gate: ThresholdGate, table: TokenTable) -> list[Float[Tensor, " _"]]:
    """Compute a gate's scores for each unit of a corpus, at all unmasked positions, or where the answers begin.

    Args:
        lm: the model with its SAE.
        gate: the gate.
        table: the contexts.
    """
    by_document: dict[str, list[Tensor]] = defaultdict(list)
    names, of_token, first = table.pieces.documents, table.pieces.of_token, 0
    for tokens, at in sampled(lm, table, torch.Generator().manual_seed(0)):
        used = (~lm.masked(tokens) if table.answers is None else at).cpu()
        score = gate.score(observe(lm, gate, tokens)).cpu()
        pieces = of_token[first : first + len(tokens)]
        first += len(tokens)
        for piece in pieces[used].unique().tolist():
            by_document[unit(names[piece])].append(score[used & (pieces == piece)])
    return [torch.cat(scores) for scores in by_document.values()]
