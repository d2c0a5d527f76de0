"""List the settings of each loss that are tried on TUNE: settings at which forgetting trades against its cost.

The settings were found on the embedded model with contexts of 128 tokens, on scripture (text) and invented people (questions, of which
only the answers are counted), with 8 contexts of each kind per step. NPO sums over a context, so its retain weights are larger, and on
long contexts its `beta` is smaller. The runs of one loss together take under 40 seconds there on one core, without the measurements.
For another model the learning rates are a first guess. Those of RepSelect were found on scripture alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from mtsae_lens.errors import ConfigError, nearest
from mtsae_lens.unlearning.finetuning.finetune import FinetuneSettings
from mtsae_lens.unlearning.finetuning.loss_interface import UnlearningLoss
from mtsae_lens.unlearning.finetuning.losses import NPO, Amnesiac, GradientAscent, GradientDifference, SimNPO
from mtsae_lens.unlearning.finetuning.rep_select import RepSelect
from mtsae_lens.unlearning.finetuning.rmu import RMU

Kind = Literal["text", "questions"]

LOSSES: dict[str, Callable[..., UnlearningLoss]] = {
    "gradient_ascent": GradientAscent,
    "amnesiac": Amnesiac,
    "gradient_difference": GradientDifference,
    "npo": NPO,
    "simnpo": SimNPO,
    "rmu": RMU,
    "rep_select": RepSelect,
}
"""Classes by name. Their defaults are those of the paper or, if these depend on the model, values that suit a small model. Add a loss with
`register_loss`."""


@dataclass(frozen=True)
class Sweep:
    """One run of finetuning; each of its snapshots is a candidate."""

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
        "rep_select": (
            Sweep(RepSelect(), FinetuneSettings(3e-3, 16, snapshots=(4, 8, 12, 16))),
            Sweep(RepSelect(source="retain"), FinetuneSettings(1e-3, 16, snapshots=(8, 12, 14, 16))),
            Sweep(RepSelect(share=0.5, source="retain"), FinetuneSettings(1e-3, 32, snapshots=(16, 20, 24, 28, 32))),
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
        "rep_select": (
            Sweep(RepSelect(), FinetuneSettings(3e-3, 16, snapshots=(4, 8, 12, 16))),
            Sweep(RepSelect(source="retain"), FinetuneSettings(1e-3, 16, snapshots=(8, 12, 14, 16))),
            Sweep(RepSelect(share=0.5, source="retain"), FinetuneSettings(1e-3, 32, snapshots=(16, 20, 24, 28, 32))),
        ),
    },
}
"""Runs by kind of forget text and name of the loss."""

_DEFAULT_SETTINGS = (
    FinetuneSettings(1e-4, 32, snapshots=(8, 16, 24, 32)),
    FinetuneSettings(3e-4, 36, snapshots=(12, 18, 24, 30, 36)),
)
"""Settings that are tried for a loss that was registered without settings."""

LossClass = TypeVar("LossClass", bound=Callable[..., UnlearningLoss])


def register_loss(
    name: str, *, text: Sequence[Sweep] = (), questions: Sequence[Sweep] = ()
) -> Callable[[LossClass], LossClass]:
    """Register a class of losses under a name, so that the benchmark includes it; use it as a decorator.

    The class follows `UnlearningLoss` and can be constructed without arguments, such as a frozen dataclass with defaults:

        @register_loss("bounded_ascent")
        @dataclass(frozen=True)
        class BoundedAscent(OfAllWeights):
            bound: float = 8.0
            uses_retain = False

            def value(self, step):
                return (self.bound - mean_nll(step.model, step.forget)).clamp(min=0)

    Args:
        name: name of the loss.
        text: runs that are tried on TUNE if the forget text is running text; empty for two runs with the defaults of the class.
        questions: runs that are tried if the forget text is questions; empty for the same two runs.

    Raises:
        ConfigError: another loss has this name.
    """

    def register(loss: LossClass) -> LossClass:
        known = LOSSES.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (loss.__module__, loss.__qualname__):
            raise ConfigError(
                f"expected a new name for {loss.__qualname__}, got {name!r}, which {known.__module__}.{known.__qualname__} has; choose "
                "another name"
            )
        LOSSES[name] = loss
        default = tuple(Sweep(loss(), settings) for settings in _DEFAULT_SETTINGS)
        SWEEPS["text"][name] = tuple(text) or default
        SWEEPS["questions"][name] = tuple(questions) or default
        return loss

    return register


def sweeps_of(name: str, kind: Kind) -> tuple[Sweep, ...]:
    """Return the runs that are tried for a loss.

    Args:
        name: name of the loss.
        kind: kind of the forget text.

    Raises:
        ConfigError: no loss has this name.
    """
    check_loss(name)
    return SWEEPS[kind][name]


def check_loss(name: str) -> None:
    """Check that a loss exists.

    Args:
        name: name of the loss.

    Raises:
        ConfigError: no loss has this name.
    """
    if name not in LOSSES:
        raise ConfigError(f"expected a known loss, got {name!r}.{nearest(name, LOSSES)}")
