"""The content of an edit's file: strict types, so that nothing in it is taken for a number that it is not."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from mtsae_lens.splice.edits import DirectionEdit, Edit, FeatureClamp, FeatureEdit, Where
from mtsae_lens.splice.gates import AlwaysOpen, FeatureActiveGate, Gate, RunningEvidenceGate, SequenceRateGate
from mtsae_lens.splice.model_identity import ModelIdentity

FORMAT = "mtsae-edit-2"
_LARGEST = 1e10  # beyond it, sums of squares in float32 overflow and logits are NaN

Index = Annotated[int, Field(ge=0)]
Number = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST, allow_inf_nan=False)]


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class AlwaysRecord(_Record):
    """`AlwaysOpen` in a file."""

    kind: Literal["always"]

    def gate(self) -> Gate:
        """Build the gate."""
        return AlwaysOpen()


class FeatureActiveRecord(_Record):
    """`FeatureActiveGate` in a file."""

    kind: Literal["feature_active"]
    features: tuple[Index, ...]

    def gate(self) -> Gate:
        """Build the gate."""
        return FeatureActiveGate(torch.tensor(self.features, dtype=torch.long))


class SequenceRateRecord(_Record):
    """`SequenceRateGate` in a file."""

    kind: Literal["sequence_rate"]
    features: tuple[Index, ...]
    threshold: Number

    def gate(self) -> Gate:
        """Build the gate."""
        return SequenceRateGate(torch.tensor(self.features, dtype=torch.long), self.threshold)


class RunningEvidenceRecord(_Record):
    """`RunningEvidenceGate` in a file."""

    kind: Literal["running_evidence"]
    features: tuple[Index, ...]
    weights: tuple[Number, ...]
    decay: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
    threshold: Number

    def gate(self) -> Gate:
        """Build the gate."""
        features = torch.tensor(self.features, dtype=torch.long)
        return RunningEvidenceGate(features, torch.tensor(self.weights), self.decay, self.threshold)


GateRecord = Annotated[
    AlwaysRecord | FeatureActiveRecord | SequenceRateRecord | RunningEvidenceRecord, Field(discriminator="kind")
]


class FeaturesRecord(_Record):
    """`FeatureEdit` in a file."""

    kind: Literal["features"]
    features: tuple[Index, ...]
    multiplier: Number

    def edit(self, gate: Gate) -> Edit:
        """Build the edit."""
        return FeatureEdit(self.features, self.multiplier, gate)


class ClampRecord(_Record):
    """`FeatureClamp` in a file."""

    kind: Literal["clamp"]
    features: tuple[Index, ...]
    values: tuple[Number, ...]
    where: Where

    def edit(self, gate: Gate) -> Edit:
        """Build the edit."""
        return FeatureClamp(self.features, self.values, self.where, gate)


class DirectionsRecord(_Record):
    """`DirectionEdit` in a file."""

    kind: Literal["directions"]
    basis: tuple[tuple[Number, ...], ...]
    center: tuple[Number, ...]
    multiplier: Number

    @property
    def width(self) -> int:
        """Return the width of the directions; -1 where rows and center differ in theirs."""
        widths = {len(self.center), *map(len, self.basis)}
        return widths.pop() if len(widths) == 1 else -1

    def edit(self, gate: Gate) -> Edit:
        """Build the edit."""
        return DirectionEdit(torch.tensor(self.basis), torch.tensor(self.center), self.multiplier, gate)


EditRecord = Annotated[FeaturesRecord | ClampRecord | DirectionsRecord, Field(discriminator="kind")]


class SAERecord(BaseModel):
    """The SAE whose features an edit names."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    architecture: str | None = None
    weights_sha256: str


class EditFile(BaseModel):
    """The whole of a file; `model` is missing in files written before it was recorded."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    format: Literal["mtsae-edit-2"]
    hook_name: str
    sae: SAERecord
    edit: EditRecord
    gate: GateRecord
    model: ModelIdentity | None = None
    provenance: dict[str, Any] = Field(default_factory=dict)

    def problem(self, d_sae: int, d_in: int) -> str | None:
        """Say what does not fit an SAE of these sizes: a feature that it does not have, or directions of another width."""
        for name, part in (("edit", self.edit), ("gate", self.gate)):
            highest = max(getattr(part, "features", ()) or (0,))
            if highest >= d_sae:
                return f"{name}.features: expected indices below {d_sae}, got {highest}"
        if isinstance(self.edit, DirectionsRecord) and self.edit.width not in (d_in, -1):
            return f"edit.basis and edit.center: expected a width of {d_in}, got {self.edit.width}"
        if isinstance(self.edit, DirectionsRecord) and self.edit.width < 0:
            return "edit.basis and edit.center: expected rows of one width, got several"
        return None
