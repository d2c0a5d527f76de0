"""Set a gate's threshold on people to keep as if they were strangers: as scored by a gate that was fitted without them.

The same people are asked about on SELECT and TUNE. A gate that was fitted on a person scores that person lower than a stranger, the more so
the fewer people there are. So the fit is repeated without each fold of the people, and only their scores are taken from it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.errors import DataError
from mtsae_lens.progress import track
from mtsae_lens.splice.gate_interface import ThresholdGate
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.conformal import split_by_unit, unit
from mtsae_lens.unlearning.gating import MAX_QUANTILE, GateT, scores_to_keep

N_FOLDS = 4


def left_out_thresholds_at(
    lm: HookedLM,
    gate: GateT,
    refit: Callable[[Sequence[TokenTable]], ThresholdGate],
    fitted: Sequence[TokenTable],
    calibration: Sequence[TokenTable],
    false_positive_rates: Sequence[float],
) -> list[GateT]:
    """Set the threshold of a gate such that it is open on given shares of positions, in the corpus on which it opens most.

    Documents and people that are in the fit and in the calibration are scored by a gate that was fitted without them, all others by the gate
    itself. For questions, only the position where the answer begins is used.

    Args:
        lm: the model with its SAE.
        gate: the gate, fitted on everything.
        refit: fits the same kind of gate on other text to keep.
        fitted: the text to keep that the gate was fitted on.
        calibration: the text to set the threshold on.
        false_positive_rates: shares of positions, between 0 and 1.

    Returns:
        One gate per rate.

    Raises:
        DataError: the text of one person is all that there is to fit the gate on.
    """
    shared = sorted(_units(fitted) & _units(calibration))
    scores: dict[int, list[Tensor]] = defaultdict(list)
    for place, table in enumerate(calibration):
        if (others := split_by_unit(table, set(shared))[1]) is not None:
            scores[place].append(scores_to_keep(lm, gate, others))
    n_folds = min(N_FOLDS, len(shared))
    for fold in track(range(n_folds), "setting the gate", "fold"):
        out = set(shared[fold::n_folds])
        rest = [part for table in fitted if (part := split_by_unit(table, out)[1]) is not None]
        if not rest:
            raise DataError(
                f"expected several people to keep, got {', '.join(sorted(out))}; ask about more, or set the threshold by quantile"
            )
        without = refit(rest)
        for place, table in enumerate(calibration):
            if (own := split_by_unit(table, out)[0]) is not None:
                scores[place].append(scores_to_keep(lm, without, own))
    each = [torch.cat(found)[:MAX_QUANTILE] for found in scores.values()]
    return [gate.with_threshold(max(torch.quantile(s, 1 - rate).item() for s in each)) for rate in false_positive_rates]


def _units(tables: Sequence[TokenTable]) -> set[str]:
    return {unit(name) for table in tables for name in table.pieces.documents}
