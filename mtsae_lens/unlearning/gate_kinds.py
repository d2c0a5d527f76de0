"""Define the kinds of gates that `mtsae unlearn --gate` fits on SELECT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.errors import ConfigError, DataError, nearest
from mtsae_lens.splice.evidence_gates import Source
from mtsae_lens.splice.gate_interface import ThresholdGate
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.evidence_fit import fit_decayed_mean, fit_two_state
from mtsae_lens.unlearning.gating import fit_gate
from mtsae_lens.unlearning.group_fit import fit_known_groups
from mtsae_lens.unlearning.observed import observe_features, observe_table, reader

ThresholdRule = Literal["quantile", "conformal", "left_out"]
"""How the threshold is set on TUNE: by `thresholds_at` (positions), `conformal_thresholds_at` (documents) or `left_out_thresholds_at`
(positions, of people that the gate was not fitted on)."""


@dataclass(frozen=True)
class GateChoice:
    """Which gate is fitted.

    Raises:
        ConfigError: the kind does not exist.
    """

    kind: str = "running_evidence"
    """Name in `GATE_KINDS`."""
    n_detectors: int = 1
    """Number of detectors of a two-state filter."""
    threshold: ThresholdRule = "quantile"

    def __post_init__(self) -> None:
        if self.kind not in GATE_KINDS:
            raise ConfigError(f"expected a known gate, got {self.kind!r}.{nearest(self.kind, GATE_KINDS)}")

    def fit(self, lm: HookedLM, forget: TokenTable, retain: Sequence[TokenTable], *, seed: int) -> ThresholdGate:
        """Fit the gate.

        Args:
            lm: the model with its SAE.
            forget: the text to open on.
            retain: the texts to stay closed on.
            seed: seed of the fit.
        """
        return GATE_KINDS[self.kind](lm, forget, retain, seed, self.n_detectors)


Fit = Callable[[HookedLM, TokenTable, Sequence[TokenTable], int, int], ThresholdGate]


def _running_evidence(
    lm: HookedLM, forget: TokenTable, retain: Sequence[TokenTable], seed: int, n_detectors: int
) -> ThresholdGate:
    return fit_gate(lm, forget, retain, seed=seed)


def _two_state(reads: Source) -> Fit:
    def fit(lm: HookedLM, forget: TokenTable, retain: Sequence[TokenTable], seed: int, n_detectors: int) -> ThresholdGate:
        if reads == "features":
            first, others = observe_features(lm, forget, retain)
        else:
            first, *others = (observe_table(lm, table, reader(lm, reads)) for table in (forget, *retain))
        return fit_two_state(first, others, reads, seed=seed, n_detectors=n_detectors)

    return fit


def _decayed_mean(lm: HookedLM, forget: TokenTable, retain: Sequence[TokenTable], seed: int, n_detectors: int) -> ThresholdGate:
    first, *others = (observe_table(lm, table, reader(lm, "activations"), None) for table in (forget, *retain))
    return fit_decayed_mean(first, others, "activations", seed=seed)


def _known_groups(lm: HookedLM, forget: TokenTable, retain: Sequence[TokenTable], seed: int, n_detectors: int) -> ThresholdGate:
    asked = [table for table in retain if table.answers is not None]
    if forget.answers is None or not asked:
        raise DataError(
            "expected questions to forget and questions to keep for a gate of known groups, got text; give such as --forget facts:forget:known "
            "--near facts:retain:known, or another --gate"
        )
    ours, *theirs = (_where_answers_begin(lm, table) for table in (forget, *asked))
    names = [name for table in asked for name in table.documents]
    return fit_known_groups(ours, forget.documents, torch.cat(theirs), names)


def _where_answers_begin(lm: HookedLM, table: TokenTable) -> Float[Tensor, "question d"]:
    observed = observe_table(lm, table, reader(lm, "activations"))
    assert observed.at is not None
    return observed.rows[torch.arange(len(observed), device=observed.at.device), observed.at]


GATE_KINDS: dict[str, Fit] = {
    "running_evidence": _running_evidence,
    "two_state_features": _two_state("features"),
    "two_state_activations": _two_state("activations"),
    "decayed_mean_activations": _decayed_mean,
    "known_groups_activations": _known_groups,
}
"""Functions that fit a gate, by name."""
