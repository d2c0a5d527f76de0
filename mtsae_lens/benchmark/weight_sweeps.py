"""Settings swept on TUNE for methods that change weights."""

from __future__ import annotations

from dataclasses import dataclass

from mtsae_lens.unlearning.finetuning import FinetuneSettings
from mtsae_lens.unlearning.losses import NPO, RMU, Amnesiac, GradientAscent, GradientDifference, SimNPO, UnlearningLoss


@dataclass(frozen=True)
class WeightArm:
    """A loss and one rate; each snapshot is a setting of its own."""

    loss: UnlearningLoss
    settings: FinetuneSettings


def _arm(loss: UnlearningLoss, lr: float, *snapshots: int, n_steps: int | None = None) -> WeightArm:
    return WeightArm(loss, FinetuneSettings(lr=lr, n_steps=n_steps or max(snapshots), snapshots=snapshots))


WEIGHT_ARMS: dict[str, dict[str, tuple[WeightArm, ...]]] = {
    "domain": {
        "gradient_ascent": (_arm(GradientAscent(), 1e-4, 8, 12, 20), _arm(GradientAscent(), 3e-4, 2, 4, 6, 8)),
        "amnesiac": (_arm(Amnesiac(), 1e-4, 1, 2, 4, 8, 16, n_steps=16),),
        "gradient_difference": (_arm(GradientDifference(retain_weight=4.0), 3e-4, 16, 24, 30, 36, 42, 48),),
        "npo": (_arm(NPO(retain_weight=20.0), 3e-4, 8, 16, 24, 32, 40),),
        "simnpo": (_arm(SimNPO(retain_weight=4.0), 3e-4, 16, 24, 32, 40),),
        "rmu": (_arm(RMU(), 1e-3, 5, 10, 15, 20, 25, 30),),
    },
    "people": {
        "gradient_ascent": (_arm(GradientAscent(), 3e-5, 8, 16, 24, 32), _arm(GradientAscent(), 1e-4, 4, 8, 12, 16)),
        "amnesiac": (_arm(Amnesiac(), 3e-5, 1, 2, 3, 4, 6, n_steps=32),),
        "gradient_difference": (
            _arm(GradientDifference(retain_weight=4.0), 1e-4, 40, 80, 100, 120),
            _arm(GradientDifference(retain_weight=4.0), 3e-4, 16, 32, 50, 64),
        ),
        "npo": (_arm(NPO(retain_weight=20.0), 1e-4, 60, 90, 120, 150),),
        "simnpo": (_arm(SimNPO(retain_weight=4.0), 3e-4, 25, 50, 75, 100, 125, 150),),
        "rmu": (_arm(RMU(), 1e-3, 15, 30, 60, 90, 120),),
    },
}
"""By task and method. Rates and numbers of steps come from trials on TUNE text: costs of about 0.01 to 0.1 nats lie among the snapshots."""
