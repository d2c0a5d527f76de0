"""Settings of `mtsae unlearn`. This module loads pydantic alone; validators load the registry whose names they check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from mtsae_lens.data.choices import Dtype
from mtsae_lens.errors import ConfigError, nearest
from mtsae_lens.settings import Settings

if TYPE_CHECKING:
    from mtsae_lens.unlearning.protocol import UnlearningSettings
    from mtsae_lens.unlearning.task import Task


class UnlearnSettings(Settings):
    """Settings of `mtsae unlearn`."""

    sae: Path
    """Folder of a trained SAE of any architecture, or `hub:OWNER/NAME:SAE_ID`."""
    out: Path = Path("runs/unlearn")
    """Folder for the chosen edit, the metrics and the report."""
    forget: str
    """Text to forget: an embedded domain, a file or a folder."""
    retain: tuple[str, ...] = Field(min_length=1)
    """Unrelated text to keep. Features are chosen, the gate is fitted and the edit is tuned to spare it."""
    near: tuple[str, ...] = ()
    """Text to keep that resembles the forget text. The gate is fitted and the edit is tuned to spare it. Features are chosen without it, unless
    an edit without a gate is tried too."""
    neutral: tuple[str, ...] = ()
    """Text that is only measured, on `test`. Nothing is chosen to spare it."""
    reference: str | None = None
    """Language model that never saw the forget text, such as `embedded-retrained`. With a reference, the edit whose loss is nearest to its
    loss is chosen. Without one, the edit that adds the most loss is chosen."""
    model: str | None = None
    """Language model to edit. By default it is the one that the SAE was trained on."""
    dtype: Dtype | None = None
    """Dtype of the language model and the reference. By default it is the same as when the SAE was trained."""
    scores: tuple[str, ...] = Field(("frequency_difference", "frequency_ratio"), min_length=1)
    """Score to rank features by, such as `frequency_ratio` or `fisher_attribution`, or one that you registered. Every score is tried."""
    n_features: tuple[Annotated[int, Field(gt=0)], ...] = Field((8, 32, 128), min_length=1)
    """Number of features to edit. Every number is tried."""
    edits: tuple[str, ...] = Field(("scale",), min_length=1)
    """Kind of edit to apply to the features, such as `scale` or `clamp`. Every kind is tried."""
    error_ranks: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1)
    """Number of directions to remove from the SAE's error as well, the most specific to the forget text first. 0 keeps the error. Every number
    is tried."""
    multipliers: tuple[float, ...] = Field((0.5, 1.0, 2.0, 4.0), min_length=1)
    """Strength of the edit: 0 sets a feature to zero, and more pushes it below zero. Below -1 the edit `scale` amplifies the feature, and -1
    changes nothing. Every strength is tried."""
    false_positive_rates: tuple[float | None, ...] = Field((0.01, 0.05), min_length=1)
    """Share of the positions of text to keep at which the gate may open by mistake. `null` is an edit without a gate. Every share is tried."""
    gate: str = "running_evidence"
    """Kind of gate to fit, such as `running_evidence` or `two_state_activations`. For questions about people, `known_groups_activations`
    opens on the people to forget and stays closed on strangers."""
    n_detectors: int = Field(1, gt=0)
    """Number of detectors of a two-state gate. Give several if the forget text has many parts, such as people."""
    gate_threshold: Literal["quantile", "conformal", "left_out"] = "quantile"
    """Rule for the threshold of the gate. `quantile` counts positions of each text to keep on TUNE. `conformal` counts documents of near text,
    and guarantees the false-positive rate on new documents of the same kind. `left_out` counts positions, those of people as scored by a
    gate that was fitted without them. Use it to spare strangers if there are few people to keep."""
    scales: tuple[int, ...] = ()
    """Dilation of an MTSAE. If given, only features that the given dilations drive are edited."""
    min_scale_share: float = Field(0.5, gt=0, le=1)
    """Smallest share of the lift of a feature's pre-activation that the dilations in `scales` must provide."""
    far_budget: float = 0.05
    """Highest rise of the loss on any far text (`retain`) that an edit may cause on TUNE, in nats per token."""
    near_budget: float = 0.1
    """Highest rise of the loss on any near text that an edit may cause on TUNE, in nats per token."""
    min_ratio: float = 5.0
    """How many times more often a feature must fire on the forget text than on each far text, for the score `frequency_ratio`."""
    recovery: bool = False
    """Attack the chosen edit with perturbations at the hook that its features do not read, and measure how much of the text comes back."""
    epsilon: float = Field(0.5, gt=0)
    """Largest norm of these perturbations, as a share of the mean norm of the activations."""
    n_random_draws: int = Field(20, gt=0)
    """Number of sets of random features, matched in firing rate and strength, that are edited as a control."""
    contexts_per_split: int = Field(64, gt=0)
    """Maximum number of contexts to read from each split of each text."""
    batch_size: int = Field(16, gt=0)
    """Maximum number of contexts in a forward pass. A large vocabulary or SAE lowers it automatically."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Random seed."""
    device: str = "cpu"
    """Device to run on, such as `cpu`, `cuda`, `cuda:1` or `mps`."""

    @field_validator("scores")
    @classmethod
    def _check_scores(cls, scores: tuple[str, ...]) -> tuple[str, ...]:
        from mtsae_lens.unlearning.selection.scores import SCORES

        for score in scores:
            if score not in SCORES:
                raise ConfigError(f"expected a known score, got {score!r}.{nearest(score, SCORES)}")
        return scores

    @field_validator("gate")
    @classmethod
    def _check_gate(cls, gate: str) -> str:
        from mtsae_lens.unlearning.gate_kinds import GateChoice

        return GateChoice(gate).kind

    @model_validator(mode="after")
    def _check_gate_settings(self) -> Self:
        if self.n_detectors > 1 and not self.gate.startswith("two_state"):
            raise ConfigError(
                f"expected n_detectors with a two-state gate, got {self.n_detectors} with gate={self.gate}; give --gate two_state_activations, "
                "or leave --n-detectors out"
            )
        of_gate = sorted({"gate", "gate_threshold"} & self.model_fields_set)
        if of_gate and all(rate is None for rate in self.false_positive_rates):
            raise ConfigError(
                f"expected a false-positive rate for the gate, got {', '.join(of_gate)} and no rate (null is no gate); give such as "
                "--false-positive-rates 0.01"
            )
        return self

    @field_validator("edits")
    @classmethod
    def _check_edits(cls, edits: tuple[str, ...]) -> tuple[str, ...]:
        from mtsae_lens.unlearning.edit_kinds import check_edit_kind

        for edit in edits:
            check_edit_kind(edit)
        return edits

    def protocol(self) -> UnlearningSettings:
        """Return the settings of the unlearning protocol."""
        from mtsae_lens.unlearning.candidates import Grid
        from mtsae_lens.unlearning.gate_kinds import GateChoice
        from mtsae_lens.unlearning.protocol import UnlearningSettings
        from mtsae_lens.unlearning.recovery.perturbation import RecoverySettings

        return UnlearningSettings(
            grid=Grid(
                self.scores,
                self.n_features,
                self.multipliers,
                self.false_positive_rates,
                self.scales,
                self.min_scale_share,
                self.edits,
                self.error_ranks,
            ),
            far_budget=self.far_budget,
            near_budget=self.near_budget,
            min_ratio=self.min_ratio,
            n_random_draws=self.n_random_draws,
            seed=self.seed,
            recovery=RecoverySettings(epsilon=self.epsilon, seed=self.seed) if self.recovery else None,
            gate=GateChoice(self.gate, self.n_detectors, self.gate_threshold),
        )

    def task(self) -> Task:
        """Return every corpus with its role."""
        from mtsae_lens.unlearning.task import Corpus, Task

        corpora = [Corpus(self.forget, "forget")]
        corpora += [Corpus(source, "near") for source in self.near]
        corpora += [Corpus(source, "far") for source in self.retain]
        corpora += [Corpus(source, "neutral") for source in self.neutral]
        return Task(tuple(corpora), self.contexts_per_split, self.seed)
