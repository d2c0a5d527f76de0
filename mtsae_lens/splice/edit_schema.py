"""Define the schema of an edit file: what the edit belongs to, and the kinds of its two parts.

The fields of an edit and of a gate are checked by the class of that kind (`mtsae_lens.splice.serialization`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mtsae_lens.splice.model_identity import ModelIdentity

FORMAT = "mtsae-edit-2"


class PartRecord(BaseModel):
    """An edit or a gate in a file: its kind, and the fields of its class."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    kind: str
    class_name: Annotated[str, Field(pattern=r"^[\w.<>]{1,200}$")] | None = Field(None, alias="class")
    """Module and name of a class that a user registered; missing for the classes of `mtsae_lens`."""

    @property
    def fields(self) -> dict[str, Any]:
        """Return the fields of the class, unchecked."""
        return dict(self.model_extra or {})


class SAERecord(BaseModel):
    """The SAE that an edit belongs to."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    architecture: str | None = None
    weights_sha256: str


class EditFile(BaseModel):
    """The contents of an edit file; `model` is missing in files written before it was recorded, and `hook_name_out` if the SAE is no
    transcoder.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    format: Literal["mtsae-edit-2"]
    hook_name: str
    hook_name_out: str | None = None
    sae: SAERecord
    edit: PartRecord
    gate: PartRecord
    model: ModelIdentity | None = None
    provenance: dict[str, Any] = Field(default_factory=dict)
