"""What is tried of each loss on TUNE before baselines are compared: settings at which forgetting and its price were seen to trade.

Found on the embedded model with contexts of 128 tokens, scripture (text) and invented people (questions, whose answers alone count), 8 and
8 contexts a step. NPO sums over a context, so its retain weights are larger and on long contexts its `beta` smaller. Together the runs of
one loss take under 40 seconds on one core there, measuring apart. For another model the rates are a first guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mtsae_lens.unlearning.finetuning.finetune import FinetuneSettings
from mtsae_lens.unlearning.finetuning.losses import (
    NPO,
    RMU,
    Amnesiac,
    GradientAscent,
    GradientDifference,
    SimNPO,
    UnlearningLoss,
)

Kind = Literal["text", "questions"]


@dataclass(frozen=True)
class Sweep:
    """One run, whose snapshots are that many candidates."""

    loss: UnlearningLoss
    settings: FinetuneSettings


SWEEPS: dict[Kind, dict[str, tuple[Sweep, ...]]] = {
    "text": {
        "gradient_ascent": (
            Sweep(GradientAscent(), FinetuneSettings(3e-5, 48, snapshots=(24, 36, 48))),
            Sweep(GradientAscent(), FinetuneSettings(1e-4, 32, snapshots=(4, 8, 12, 16, 20, 26, 32))),
        ),
        "amnesiac": (
            Sweep(Amnesiac(), FinetuneSettings(1e-5, 20, snapshots=(1, 2, 4, 8, 16, 32))),
            Sweep(Amnesiac(), FinetuneSettings(3e-5, 20, snapshots=(1, 2, 3, 4, 6, 8, 16))),
        ),
        "gradient_difference": (
            Sweep(GradientDifference(), FinetuneSettings(1e-4, 32, snapshots=(8, 16, 24, 32))),
            Sweep(GradientDifference(4.0), FinetuneSettings(3e-4, 36, snapshots=(12, 18, 24, 30, 36))),
        ),
        "npo": (
            Sweep(NPO(), FinetuneSettings(1e-4, 32, snapshots=(8, 16, 24, 32))),
            Sweep(NPO(beta=0.02, retain_weight=200.0), FinetuneSettings(3e-4, 36, snapshots=(6, 12, 18, 24, 30, 36))),
        ),
        "simnpo": (
            Sweep(SimNPO(beta=0.5), FinetuneSettings(1e-4, 32, snapshots=(16, 32))),
            Sweep(SimNPO(beta=0.5), FinetuneSettings(3e-4, 36, snapshots=(12, 18, 24, 30, 36))),
        ),
        "rmu": (
            Sweep(RMU(), FinetuneSettings(3e-4, 64, snapshots=(8, 16, 32, 48, 64))),
            Sweep(RMU(), FinetuneSettings(1e-3, 30, snapshots=(10, 15, 20, 25, 30))),
        ),
    },
    "questions": {
        "gradient_ascent": (
            Sweep(GradientAscent(), FinetuneSettings(3e-5, 64, snapshots=(16, 32, 48, 64))),
            Sweep(GradientAscent(), FinetuneSettings(1e-4, 24, snapshots=(8, 12, 16, 24))),
        ),
        "amnesiac": (Sweep(Amnesiac(), FinetuneSettings(3e-5, 16, snapshots=(1, 2, 4, 6, 8, 12, 16))),),
        "gradient_difference": (
            Sweep(GradientDifference(4.0), FinetuneSettings(1e-4, 75, snapshots=(15, 30, 40, 50, 75))),
            Sweep(GradientDifference(4.0), FinetuneSettings(3e-4, 25, snapshots=(5, 10, 15, 25))),
        ),
        "npo": (
            Sweep(NPO(retain_weight=20.0), FinetuneSettings(1e-4, 100, snapshots=(20, 40, 60, 80, 100))),
            Sweep(NPO(retain_weight=20.0), FinetuneSettings(3e-4, 50, snapshots=(10, 15, 20, 25, 50))),
        ),
        "simnpo": (
            Sweep(SimNPO(retain_weight=4.0), FinetuneSettings(1e-4, 120, snapshots=(20, 40, 50, 60, 120))),
            Sweep(SimNPO(retain_weight=4.0), FinetuneSettings(3e-4, 150, snapshots=(10, 20, 50, 100, 150))),
        ),
        "rmu": (
            Sweep(RMU(retain_weight=2.0), FinetuneSettings(3e-4, 40, snapshots=(5, 10, 20, 30, 40))),
            Sweep(RMU(retain_weight=2.0), FinetuneSettings(1e-3, 60, snapshots=(3, 6, 15, 30, 60))),
        ),
    },
}
