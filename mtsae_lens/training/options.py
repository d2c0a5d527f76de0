"""Settings of the trainer for which SAELens's configuration has no field."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from mtsae_lens.data.massive import MASSIVE
from mtsae_lens.errors import ConfigError
from mtsae_lens.training.settings import BDecInit, Frozen


@dataclass(frozen=True)
class TrainerOptions:
    """The settings for which SAELens's configuration has no field."""

    weight_decay: float = 0.0
    """Weight decay of AdamW; with 0 it is Adam. The paper has 0.01."""

    b_dec_init: BDecInit = "mean"
    """Where the `b_dec` of a fresh SAE starts: `mean`, the mean of the first activations, or `zeros`, as in SAELens. An SAE whose `b_dec` is
    not zero keeps it. See `mtsae_lens.training.start`."""

    frozen: Frozen | None = None
    """Weights that are not trained, as a control: `decoder` or `all`. They keep their start, which `b_dec_init` sets for `b_dec`."""

    max_norm_multiple: float | None = MASSIVE
    """Leave out of the loss positions whose activations are more than this many times as long as the median (attention sinks,
    `mtsae_lens.data.massive`); None keeps them."""

    text_seed: int | None = None
    """The seed of the order of the text; None for the seed of the configuration."""

    log_every_n_steps: int = 10
    checkpoint_every_n_steps: int = 500
    run_dir: Path | None = None
    """The folder for `training_log.jsonl` and `checkpoints/`; None writes neither."""

    def __post_init__(self) -> None:
        if self.b_dec_init not in get_args(BDecInit):
            raise ConfigError(
                f"expected b_dec_init of {' or '.join(get_args(BDecInit))}, got {self.b_dec_init!r}; give one of them"
            )
        if self.frozen not in (None, *get_args(Frozen)):
            raise ConfigError(
                f"expected frozen of {' or '.join(get_args(Frozen))} or None, got {self.frozen!r}; give one of them"
            )
        if self.max_norm_multiple is not None and not self.max_norm_multiple > 1:
            raise ConfigError(
                f"expected max_norm_multiple above 1, got {self.max_norm_multiple}; raise it, or give None to keep all positions"
            )
