"""What features are chosen from, and what a way of choosing is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mtsae_lens.data.contexts import TokenTable
from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.progress import track
from mtsae_lens.splice.attribution import LossChange, loss_change
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.selection.statistics import FiringStatistics, document_halves, firing_statistics

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class SelectionEvidence:
    """All that a score may read, from SELECT text: each quantity is computed when first asked for, and once.

    Scores spare every retain corpus equally, near and far. To choose against far text alone, because a gate spares the near text, take
    `without_near`.
    """

    lm: HookedLM
    forget: TokenTable
    near: tuple[TokenTable, ...] = ()
    far: tuple[TokenTable, ...] = ()
    _known: dict[tuple[str, int], Any] = field(default_factory=dict, repr=False)
    """By kind and table; shared with `without_near`."""

    def __post_init__(self) -> None:
        if not self.retain:
            raise DataError("features are chosen against text to retain; got none: give near or far tables")

    @property
    def retain(self) -> tuple[TokenTable, ...]:
        """Near tables, then far ones."""
        return self.near + self.far

    def without_near(self) -> SelectionEvidence:
        """Return the evidence without near text; what is known of a corpus is not computed again.

        Raises:
            DataError: there is no far text.
        """
        return replace(self, near=())

    def _of(self, compute: Callable[[HookedLM, TokenTable], T], table: TokenTable) -> T:
        key = (compute.__name__, id(table))
        if key not in self._known:
            self._known[key] = compute(self.lm, table)
        return self._known[key]

    @cached_property
    def forget_statistics(self) -> FiringStatistics:
        """How the features fire on the forget corpus."""
        return self._of(firing_statistics, self.forget)

    @cached_property
    def retain_statistics(self) -> tuple[FiringStatistics, ...]:
        """How they fire on each retain corpus."""
        texts = track(self.retain, "counting firings on text to keep", "text")
        return tuple(self._of(firing_statistics, table) for table in texts)

    @cached_property
    def highest_retain_rate(self) -> Float[Tensor, " d_sae"]:
        """Firing rate on the retain corpus on which the feature fires most often."""
        return torch.stack([statistics.rate for statistics in self.retain_statistics]).amax(dim=0)

    @cached_property
    def highest_retain_mean(self) -> Float[Tensor, " d_sae"]:
        """Mean activation over all tokens of the retain corpus on which it is highest."""
        return torch.stack([statistics.mean for statistics in self.retain_statistics]).amax(dim=0)

    @cached_property
    def forget_change(self) -> LossChange:
        """What ablating each feature is expected to do to the forget corpus; nats per token."""
        return self._of(loss_change, self.forget)

    @cached_property
    def retain_changes(self) -> tuple[LossChange, ...]:
        """The same on each retain corpus."""
        texts = track(self.retain, "attributing the loss on text to keep", "text")
        return tuple(self._of(loss_change, table) for table in texts)

    def halves(self, generator: torch.Generator) -> tuple[SelectionEvidence, SelectionEvidence]:
        """Return the same corpora, each cut into two random halves of its documents.

        Raises:
            DataError: a corpus of one document.
        """
        forget, *retain = (document_halves(table, generator) for table in (self.forget, *self.retain))
        near, far = retain[: len(self.near)], retain[len(self.near) :]
        first, second = (
            SelectionEvidence(self.lm, forget[half], tuple(t[half] for t in near), tuple(t[half] for t in far))
            for half in (0, 1)
        )
        return first, second


def feature_scores(score: FeatureScore, evidence: SelectionEvidence) -> Float[Tensor, " d_sae"]:
    """Compute a score of every feature, and check it.

    Raises:
        ConfigError: not one number for each feature.
    """
    values, d_sae = score(evidence), evidence.lm.sae.cfg.d_sae
    if not isinstance(values, Tensor) or values.shape != (d_sae,):
        came = f"a tensor of shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise ConfigError(
            f"the score {score.name!r} must give a tensor with a number for each of {d_sae} features; it gave {came}"
        )
    return values


@runtime_checkable
class FeatureScore(Protocol):
    """A way of choosing features. Classes are frozen dataclasses: their fields are the settings."""

    @property
    def name(self) -> str:
        """Its key in `SCORES`."""
        ...

    def __call__(self, evidence: SelectionEvidence) -> Float[Tensor, " d_sae"]:
        """Score every feature: the higher, the earlier it is edited; `-inf` if it must not be edited."""
        ...
