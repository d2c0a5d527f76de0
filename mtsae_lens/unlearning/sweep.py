"""Measure many settings on TUNE text, and choose one of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.progress import phase
from mtsae_lens.records import MaybeNaN, Record
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.measures.effects import edit_losses
from mtsae_lens.unlearning.measures.results import EditLoss
from mtsae_lens.unlearning.task import SPARED, Task

Setting = dict[str, str | int | float | None]
"""How a candidate was made: score, number of features, multiplier, ..., or loss, learning rate and step."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """An edit to try, and how it was made."""

    setting: Setting
    edit: Edit


@dataclass(frozen=True)
class Outcome(Record):
    """The effect of one setting on TUNE, in nats per counted token; NaN if a loss is not finite."""

    setting: Setting
    forget: MaybeNaN
    """Increase of the loss on the forget text."""
    near: MaybeNaN
    """Increase of the loss on the near corpus that is affected most; 0 without near text."""
    far: MaybeNaN
    """Increase of the loss on the far corpus that is affected most."""
    forget_nll: MaybeNaN
    """Loss on the forget text after the edit."""


def sweep(lm: HookedLM, task: Task, candidates: Sequence[Candidate]) -> list[Outcome]:
    """Measure every candidate on TUNE. The model runs to the hook once per corpus, for all candidates together.

    Args:
        lm: the model with its SAE.
        task: the corpora.
        candidates: the edits to try.

    Returns:
        One outcome per candidate.
    """
    edits = [candidate.edit for candidate in candidates]
    tables = _tables(lm, task)
    n_runs = len(edits) * sum(lm.n_batches(table) for table in tables.values())
    with phase(f"trying {len(edits)} edits on TUNE", "run", n_runs):
        effects = {source: edit_losses(lm, table, edits) for source, table in tables.items()}
    return [
        summarize_outcome(task, candidate.setting, {source: of_source[place] for source, of_source in effects.items()})
        for place, candidate in enumerate(candidates)
    ]


def _tables(lm: HookedLM, task: Task) -> Mapping[str, TokenTable]:
    return task.tables("tune", lm.cutter, ("forget", *SPARED))


def summarize_outcome(task: Task, setting: Setting, effects: Mapping[str, EditLoss]) -> Outcome:
    """Summarize the effects of one setting on all corpora.

    Args:
        task: the corpora.
        setting: how the candidate was made.
        effects: losses by source.
    """
    worst = {role: _highest([effects[s].nll_delta for s in task.sources(role)]) for role in SPARED}
    forget = effects[task.forget]
    return Outcome(setting, forget.nll_delta, worst["near"], worst["far"], forget.mean(forget.nll_edited))


def _highest(values: Sequence[float]) -> float:
    """Return the highest value: 0 if there are no values, NaN if any is NaN (`max` alone keeps or drops a NaN depending on its
    position).
    """
    return math.nan if any(map(math.isnan, values)) else max(values, default=0.0)


def within_budgets(outcomes: Sequence[Outcome], near_budget: float, far_budget: float) -> list[int]:
    """Return the indices of the settings that stay within the budgets; a setting with a loss that is not finite never does.

    Args:
        outcomes: all settings.
        near_budget: largest increase of the loss on near text, in nats per token.
        far_budget: largest increase of the loss on far text, in nats per token.
    """
    return [
        place for place, o in enumerate(outcomes) if o.near <= near_budget and o.far <= far_budget and math.isfinite(o.forget)
    ]


def most_forgetting(outcomes: Sequence[Outcome], places: Sequence[int], max_nll: float) -> int | None:
    """Return the index of the setting that forgets most without a forget loss above `max_nll`; None if there is no such setting.

    Args:
        outcomes: all settings.
        places: indices of the settings to choose from.
        max_nll: loss of a uniform guess, in nats; a higher loss is damage.
    """
    sane = [place for place in places if outcomes[place].forget_nll <= max_nll]
    return max(sane, key=lambda place: outcomes[place].forget, default=None)


def nearest_to(outcomes: Sequence[Outcome], places: Sequence[int], goal: float) -> int | None:
    """Return the index of the setting whose forgetting is nearest to a goal, such as that of the reference; None if there are no settings.

    Args:
        outcomes: all settings.
        places: indices of the settings to choose from.
        goal: increase of the loss on the forget text, in nats per token.
    """
    return min(places, key=lambda place: abs(outcomes[place].forget - goal), default=None)
