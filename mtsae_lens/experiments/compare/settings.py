"""Settings of `mtsae compare`. This module loads pydantic alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from mtsae_lens.data.choices import FLOAT32, Dtype
from mtsae_lens.errors import ConfigError, nearest
from mtsae_lens.experiments.compare.arms import ARMS, QUICK, CompareArm, CompareSize
from mtsae_lens.settings import Settings
from mtsae_lens.training.settings import TrainSettings

_OF_THE_TEXT = ("model", "dtype", "dataset", "context_size", "prepend_bos", "packed")
"""Settings that a cache knows."""


class CompareSettings(Settings):
    """Settings of `mtsae compare`."""

    out: Path = Path("runs/compare")
    """Folder for everything that is trained and measured, and the report."""
    cache: Path | None = None
    """Folder that `mtsae cache` wrote, which decides model, text and contexts. By default a cache is written into the output folder."""
    model: str = "embedded"
    """Language model: `embedded`, a name that TransformerLens knows, or a local Hugging Face folder; `bridge:` before either
    loads it as a TransformerBridge."""
    dtype: Dtype = FLOAT32
    """Dtype of the language model."""
    dataset: str = "embedded"
    """Text to train and to measure on. SAEs are trained on its split `train`, chosen on `tune` and measured once on `test`."""
    hook_name: tuple[str, ...] = ("blocks.3.hook_resid_post",)
    """TransformerLens hooks whose activations the SAEs read. With `cache` the default is all hooks of the cache."""
    architectures: tuple[str, ...] | None = Field(None, min_length=1)
    """Architecture to compare, such as `mtsae_memory` or `topk`. By default all are compared."""
    controls: tuple[str, ...] | None = None
    """Control or floor to add, such as `topk_wider` or `frozen_decoder`. By default all are added. Give `[]` in a `--config` file for none."""
    saes: tuple[Path, ...] = ()
    """Folder of a trained SAE of any architecture that is measured beside the others."""
    l0: tuple[int, ...] | None = Field(None, min_length=1)
    """Number of features active at a token. By default 8 and 32."""
    n_seeds: int | None = Field(None, gt=0)
    """Number of seeds of every architecture. By default 3, or 1 with `quick`."""
    n_control_seeds: int = Field(1, gt=0)
    """Number of seeds of every control and floor."""
    d_sae: int | None = Field(None, gt=0)
    """Number of features of every SAE. By default 1,024, or 256 with `quick`."""
    training_tokens: int | None = Field(None, gt=0)
    """Number of tokens to train every SAE on. By default 400,000, or 60,000 with `quick`."""
    search_tokens: int | None = Field(None, gt=0)
    """Number of tokens of every training of the search. By default 100,000, or 30,000 with `quick`. Architectures that need a sparsity
    coefficient are searched with all `training_tokens`."""
    lr: tuple[float, ...] | None = Field(None, min_length=1)
    """Learning rates to choose from on `tune`, for each architecture and L0. By default 0.004, 0.008 and 0.016, or 0.004 alone with `quick`."""
    n_finalists: int = Field(2, gt=0)
    """Number of learning rates, the best ones of the search with `search_tokens`, to compare again with all `training_tokens`."""
    l0_tolerance: float = Field(0.05, gt=0, lt=1)
    """Relative distance from the wanted L0 at which the search for a sparsity coefficient ends."""
    l0_margin: float = Field(0.1, gt=0, lt=1)
    """How far above the wanted L0 an SAE may be on `test`, relative to it, to be compared with the others."""
    n_l0_trials: int = Field(4, gt=0)
    """Maximum number of sparsity coefficients to try at each learning rate."""
    n_tune_contexts: int = Field(48, gt=0)
    """Number of contexts of `tune` to choose on."""
    n_eval_contexts: int | None = Field(None, gt=0)
    """Number of contexts of `test` to measure on. By default 96, or 16 with `quick`."""
    value_bits: int = Field(4, ge=1, le=16)
    """For the bits per token, the value of an active feature is coded in 2^`value_bits` levels."""
    sae: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Further settings of an architecture, such as `jumprelu={jumprelu_bandwidth: 0.1}`."""
    context_size: int = Field(128, gt=1)
    """Number of positions in a context."""
    batch_size_tokens: int | None = Field(None, gt=0)
    """Number of tokens in a training batch, a multiple of the context size. By default 512, rounded down to whole contexts."""
    prepend_bos: bool = True
    """Begin every context with the BOS token."""
    packed: bool = True
    """Fill every context with several documents. Without packing, a context holds one document."""
    quick: bool = False
    """Use one seed, small SAEs and short training runs, to check that everything runs."""
    n_workers: int = Field(1, gt=0)
    """Number of processes. Each process trains or measures one SAE at a time. Wall times are those beside the other processes."""
    device: str = "cpu"
    """Device to run on, such as `cpu`, `cuda`, `cuda:1` or `mps`."""

    @field_validator("hook_name", mode="before")
    @classmethod
    def _as_several(cls, value: Any) -> Any:
        """Take one hook, as `mtsae train` does, for a list of one."""
        return (value,) if isinstance(value, str) else value

    @field_validator("architectures", "controls")
    @classmethod
    def _check_names_of_arms(cls, names: tuple[str, ...] | None, info: Any) -> tuple[str, ...] | None:
        valid = [name for name, arm in ARMS.items() if arm.is_compared == (info.field_name == "architectures")]
        for name in names or ():
            if name not in valid:
                raise ConfigError(f"{info.field_name}: expected one of {', '.join(valid)}, got {name!r}.{nearest(name, valid)}")
        return names

    @field_validator("l0")
    @classmethod
    def _check_l0(cls, l0: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if any(target < 1 for target in l0 or ()):
            raise ConfigError(f"l0: expected numbers of at least 1, got {min(l0 or ())}; raise it")
        return l0

    @field_validator("lr")
    @classmethod
    def _check_lr(cls, lr: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if any(rate <= 0 for rate in lr or ()):
            raise ConfigError(f"lr: expected positive numbers, got {min(lr or ())}; raise it")
        return lr

    @field_validator("sae")
    @classmethod
    def _check_sae(cls, sae: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name in sae:
            if name not in ARMS:
                raise ConfigError(f"sae: expected the name of an architecture, got {name!r}.{nearest(name, ARMS)}")
        return sae

    def size(self) -> CompareSize:
        """Return how much work to do."""
        names = "l0 n_seeds d_sae training_tokens search_tokens lr n_eval_contexts".split()
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return replace(QUICK if self.quick else CompareSize(), **given)

    def arms(self) -> dict[str, CompareArm]:
        """Return what is trained, by name: architectures, controls and floors."""

        def is_chosen(name: str, arm: CompareArm) -> bool:
            names = self.architectures if arm.is_compared else self.controls
            return names is None or name in names

        return {name: arm for name, arm in ARMS.items() if is_chosen(name, arm)}

    def given_text(self) -> dict[str, Any]:
        """Return the settings of model, text and contexts that were given, which a cache may contradict."""
        return {name: getattr(self, name) for name in _OF_THE_TEXT if name in self.model_fields_set}

    def batch_tokens(self, context_size: int) -> int:
        """Return the number of tokens in a training batch.

        Args:
            context_size: positions in a context.
        """
        default: int = TrainSettings.model_fields["batch_size_tokens"].default
        return self.batch_size_tokens or max(1, default // context_size) * context_size
