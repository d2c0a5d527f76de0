"""Define the evidence that features are chosen from, and the interface of a score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.progress import track
from mtsae_lens.splice.attribution import LossChange, loss_change
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.selection.statistics import FiringStatistics, document_halves, firing_statistics

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class SelectionEvidence:
    """Everything that a score may read, from SELECT text. Each quantity is computed once, when it is first used.

    Scores spare every retain corpus equally, near and far. To choose against far text only, because a gate spares the near text, use
    `without_near`.

    Args:
        lm: the model with its SAE.
        forget: the forget text.
        near: near texts to retain.
        far: far texts to retain.
        carried: whether the features are chosen for edits that the decoder of an SAE with memory carries on. The effects on the loss are then
            those of such edits.

    Raises:
        DataError: there is neither near nor far text.
    """

    lm: HookedLM
    forget: TokenTable
    near: tuple[TokenTable, ...] = ()
    far: tuple[TokenTable, ...] = ()
    carried: bool = False
    _known: dict[tuple[str, int], Any] = field(default_factory=dict, repr=False)
    """Computed quantities by kind and table; shared with `without_near` and other copies."""

    def __post_init__(self) -> None:
        if not self.retain:
            raise DataError("expected near or far text to choose features against, got none; give at least one table")

    @property
    def retain(self) -> tuple[TokenTable, ...]:
        """Return the near tables, followed by the far ones."""
        return self.near + self.far

    def without_near(self) -> SelectionEvidence:
        """Return the evidence without near text; quantities that are already known are kept.

        Raises:
            DataError: there is no far text.
        """
        return replace(self, near=())

    def _loss_change(self, table: TokenTable) -> LossChange:
        return self._of(partial(loss_change, carried=self.carried), table, f"loss change, carried: {self.carried}")

    def _of(self, compute: Callable[[HookedLM, TokenTable], T], table: TokenTable, name: str) -> T:
        key = (name, id(table))
        if key not in self._known:
            self._known[key] = compute(self.lm, table)
        return self._known[key]

    @cached_property
    def forget_statistics(self) -> FiringStatistics:
        """Return how the features fire on the forget corpus."""
        return self._of(firing_statistics, self.forget, "firing statistics")

    @cached_property
    def retain_statistics(self) -> tuple[FiringStatistics, ...]:
        """Return how the features fire on each retain corpus."""
        texts = track(self.retain, "counting firings on text to keep", "text")
        return tuple(self._of(firing_statistics, table, "firing statistics") for table in texts)

    @cached_property
    def highest_retain_rate(self) -> Float[Tensor, " d_sae"]:
        """Return each feature's firing rate on the retain corpus on which it fires most often."""
        return torch.stack([statistics.rate for statistics in self.retain_statistics]).amax(dim=0)

    @cached_property
    def highest_retain_mean(self) -> Float[Tensor, " d_sae"]:
        """Return each feature's mean activation over all tokens of the retain corpus on which it is highest."""
        return torch.stack([statistics.mean for statistics in self.retain_statistics]).amax(dim=0)

    @cached_property
    def forget_change(self) -> LossChange:
        """Return the expected change of the loss on the forget corpus when each feature is ablated, in nats per token."""
        return self._loss_change(self.forget)

    @cached_property
    def retain_changes(self) -> tuple[LossChange, ...]:
        """Return the expected change of the loss on each retain corpus when each feature is ablated, in nats per token."""
        texts = track(self.retain, "attributing the loss on text to keep", "text")
        return tuple(self._loss_change(table) for table in texts)

    def halves(self, generator: torch.Generator) -> tuple[SelectionEvidence, SelectionEvidence]:
        """Split every corpus into two random halves of its documents.

        Args:
            generator: source of randomness.

        Raises:
            DataError: a corpus has only one document.
        """
        forget, *retain = (document_halves(table, generator) for table in (self.forget, *self.retain))
        near, far = retain[: len(self.near)], retain[len(self.near) :]
        first, second = (
            SelectionEvidence(self.lm, forget[half], tuple(t[half] for t in near), tuple(t[half] for t in far), self.carried)
            for half in (0, 1)
        )
        return first, second


def feature_scores(score: FeatureScore, evidence: SelectionEvidence) -> Float[Tensor, " d_sae"]:
    """Compute a score of every feature, and check its shape.

    Args:
        score: the score.
        evidence: SELECT text of the corpora.

    Returns:
        One value per feature; `-inf` for a feature that must not be edited.

    Raises:
        ConfigError: the score does not return one number per feature.
    """
    values, d_sae = score(evidence), evidence.lm.sae.cfg.d_sae
    if not isinstance(values, Tensor) or values.shape != (d_sae,):
        came = f"a tensor of shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise ConfigError(
            f"expected the score {score.name!r} to return a tensor of shape ({d_sae},), got {came}; return one number per feature"
        )
    return values


@runtime_checkable
class FeatureScore(Protocol):
    """A way of choosing features. Classes are frozen dataclasses, whose fields are the settings."""

    @property
    def name(self) -> str:
        """Return the key of the score in `SCORES`."""
        ...

    def __call__(self, evidence: SelectionEvidence) -> Float[Tensor, " d_sae"]:
        """Score every feature.

        Args:
            evidence: SELECT text of the corpora.

        Returns:
            One value per feature: the feature with the highest score is edited first; `-inf` if a feature must not be edited.
        """
        ...
