"""Records of the parts of `mtsae paper`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from mtsae_lens.experiments.paper.spreads import Spread
from mtsae_lens.experiments.planted.results import ArchitectureComparison
from mtsae_lens.records import Record
from mtsae_lens.sae.temporal import Padding

Metrics = dict[str, float | None]
"""Metrics by SAELens's names; None where a metric is not finite."""


@dataclass(frozen=True, kw_only=True)
class TrainingStep(Record):
    """Loss terms, gradient norm and learning rate of one step of training."""

    step: int
    overall_loss: float
    l2_loss: float
    l1_loss: float
    separation_loss: float
    grad_norm: float
    lr: float
    explained_variance: float


@dataclass(frozen=True)
class ScaleMoments(Record):
    """Mean and standard deviation of one scale's convolution, over kept positions and dimensions."""

    mean: float
    std: float


@dataclass(frozen=True, kw_only=True)
class PaperRun(Record):
    """The paper's run with one seed."""

    curve: tuple[TrainingStep, ...]
    table_1: dict[str, ScaleMoments]
    """Moments after training, measured on held-out text, by dilation."""
    trained: Metrics
    """Every metric of the paper on held-out text."""
    untrained: Metrics
    d_sae: int
    largest_weight_change: float


@dataclass(frozen=True, kw_only=True)
class NullDistribution(Record):
    """How the standard deviations of the convolutions of untrained taps are ordered, over many random draws of the taps."""

    n_draws: int
    monotone_share: float
    """Share of draws whose standard deviation falls at every step of the dilation."""
    monotone_share_low: float
    """Lower end of its 95% interval."""
    monotone_share_high: float
    ratios: tuple[float, ...]
    """Last standard deviation divided by the first, for the first draws."""
    ratio_mean: float
    ratio_std: float
    share_at_or_below_published: float
    """Share of ratios as low as the paper's."""
    share_like_published: float
    """Share of draws that fall at every step and as far as the paper's."""
    share_as_even: float
    """Share of draws that fall in steps as even as the paper's, whatever their size."""
    mean_std: dict[str, float]
    """Mean standard deviation by dilation."""
    expected_std: dict[str, float]
    """Root of the expected variance without its mean term, by dilation."""


@dataclass(frozen=True, kw_only=True)
class ZeroRateGradients(Record):
    """Gradient norms of the paper's run with a learning rate of 0."""

    grad_norms: tuple[float, ...]
    """One norm per batch; the first batches are those of the real run."""
    mean: float | None
    std: float | None
    min: float | None
    max: float | None


@dataclass(frozen=True, kw_only=True)
class Implied(Record):
    """What the paper's published numbers imply."""

    largest_move_of_a_weight: float
    mean_norm_squared_over_variance_if_output_is_zero: float
    explained_variance_is_bfloat16: bool
    l2_loss_is_bfloat16: bool
    activation_norm_from_table_1: float
    activation_norm_from_l2_loss: float


@dataclass(frozen=True, kw_only=True)
class Reproduction(Record):
    """The paper's run, seed by seed, and what its published numbers imply."""

    seeds: dict[str, PaperRun]
    implied: Implied
    n_steps: int
    largest_lr: float
    seeds_that_fall: int
    """Number of seeds in which the standard deviation of table 1 falls with every larger dilation."""

    @property
    def runs(self) -> list[PaperRun]:
        """Return the runs, one per seed."""
        return list(self.seeds.values())


@dataclass(frozen=True, kw_only=True)
class Initialization(Record):
    """Table 1 and the gradient of a model that does not learn."""

    null: dict[Padding, NullDistribution]
    gradients: ZeroRateGradients
    gradients_apart: float
    """Largest relative difference of a step's gradient norm from the one without learning."""


@dataclass(frozen=True, kw_only=True)
class SwitchesResult(Record):
    """The paper's SAE with one change at a time."""

    values: dict[str, dict[str, tuple[float | None, ...]]]
    """One value per seed, by arm and metric."""
    summary: dict[str, dict[str, Spread]]
    """Their spread over seeds, without the metrics that no seed has."""
    labels: dict[str, str]
    """What each arm is called in tables."""


@dataclass(frozen=True, kw_only=True)
class PaperResult(Record):
    """What `mtsae paper` measured; parts that were not run are absent."""

    reproduction: Reproduction | None = None
    initialization: Annotated[Initialization | None, Field(alias="initialisation")] = None
    switches: SwitchesResult | None = None
    planted: ArchitectureComparison | None = None
