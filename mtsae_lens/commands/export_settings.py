"""Settings of `mtsae export`. This module loads pydantic alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from mtsae_lens.data.choices import Dtype
from mtsae_lens.settings import Settings

if TYPE_CHECKING:
    from mtsae_lens.unlearning.task import Role

Form = Literal["hooked", "projected", "low-rank"]


class ExportSettings(Settings):
    """Settings of `mtsae export`."""

    sae: Path
    """Folder of the trained SAE that the edit was made with, or `hub:OWNER/NAME:SAE_ID`."""
    edit: Path
    """Edit to export: an `edit.json` from `mtsae unlearn` or `save_edit`."""
    out: Path = Path("runs/export")
    """Folder for the exported model, its comparison and its report."""
    form: Form = "hooked"
    """Form of the exported model. `hooked` attaches the edit with a stand-alone loader. `projected` removes the directions of the edit from
    the weights. `low-rank` finetunes the weights toward the edited model."""
    forget: str | None = None
    """Text that the edit forgets. The export is measured on it, and `low-rank` trains on it too."""
    retain: tuple[str, ...] = ()
    """Unrelated text to keep. The export is measured on it, and `low-rank` trains on it too."""
    near: tuple[str, ...] = ()
    """Text to keep that resembles the forget text. The export is measured on it, and `low-rank` trains on it too."""
    model: str | None = None
    """Language model to edit. By default it is the one that the SAE was trained on."""
    allow_other_model: bool = False
    """Apply the edit although it was made on another language model, which is an error otherwise."""
    dtype: Dtype | None = None
    """Dtype of the models that are compared. By default it is the same as when the SAE was trained. Changed weights are computed and written
    in float32."""
    rank: int = Field(16, gt=0)
    """Rank of a low-rank change."""
    n_steps: int = Field(200, gt=0)
    """Number of training steps of a low-rank change."""
    lr: float = Field(1e-2, gt=0)
    """Peak learning rate of a low-rank change."""
    train_contexts: int = Field(512, gt=0)
    """Maximum number of contexts of each text to train a low-rank change on."""
    n_contexts: int = Field(64, gt=0)
    """Maximum number of TEST contexts of each text to measure on."""
    batch_size: int = Field(16, gt=0)
    """Maximum number of contexts in a forward pass. A large vocabulary or SAE lowers it automatically."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Random seed."""
    device: str = "cpu"
    """Device to run on, such as `cpu`, `cuda`, `cuda:1` or `mps`."""

    def corpora(self) -> dict[str, Role]:
        """Return the role of every text."""
        roles: dict[str, Role] = {self.forget: "forget"} if self.forget else {}
        roles |= dict.fromkeys(self.near, "near")
        roles |= dict.fromkeys(self.retain, "far")
        return roles
