"""Choose on TUNE, among edits that forget alike, the one of which perturbations bring back least."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.changes import Change
from mtsae_lens.unlearning.recovery.attack import AttackedTexts, recovered_share
from mtsae_lens.unlearning.recovery.perturbation import RecoverySettings
from mtsae_lens.unlearning.sweep import Candidate, Outcome
from mtsae_lens.unlearning.task import Task

ALIKE = 0.1
"""Edits forget alike if their forgetting on TUNE differs by at most this share from that of the best one."""


def choose_hardened(
    lm: HookedLM,
    task: Task,
    candidates: Sequence[Candidate],
    outcomes: Sequence[Outcome],
    best: Callable[[Sequence[int]], int],
    within: Sequence[int],
    settings: RecoverySettings,
) -> int:
    """Choose the best setting for each rank of the removed error, and of these the one that resists perturbations best.

    Only settings that forget like the best of all are attacked. The attacker has SELECT, and TUNE is measured.

    Args:
        lm: the model with its SAE.
        task: the corpora.
        candidates: the edits that were tried on TUNE.
        outcomes: their outcomes.
        best: chooses the best of some indices without an attack.
        within: indices of the settings within the budgets, at least one.
        settings: how the attacker searches, in any direction.

    Returns:
        The index of the chosen setting.
    """
    first = best(within)
    by_rank: dict[object, list[int]] = {}
    for place in within:
        by_rank.setdefault(candidates[place].setting.get("error_rank", 0), []).append(place)
    goal = outcomes[first].forget
    alike = [place for places in by_rank.values() if abs(outcomes[place := best(places)].forget - goal) <= ALIKE * abs(goal)]
    if len(alike) < 2:
        return first
    texts = AttackedTexts(*(task.table(task.forget, split, lm.cutter) for split in ("select", "tune")))  # type: ignore[arg-type]
    return min(alike, key=lambda place: recovered_share(lm, Change(candidates[place].edit), texts, settings))
