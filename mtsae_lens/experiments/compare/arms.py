"""Define which SAEs are compared: architectures, controls for the memory of the decoder, and floors. This module loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["ours", "saelens", "control", "floor"]
Sparsity = Literal["k", "l1_coefficient", "l0_coefficient"]

MEMORY = "mtsae_memory"
_PREDICTIVE: dict[str, Any] = {"memory": "predictive"}
_FOLLOWS: dict[str, Any] = {"topk_threshold_lr": 0.05}
"""The threshold for inference is a moving average over 20 steps, not 100: at SAELens's rate it does not arrive within the 200 steps of a short
training, and L0 is nearly twice k."""
_MATRYOSHKA_SHARES = (8, 4, 2, 1)
"""The nested dictionaries of Matryoshka SAEs have these fractions of all features, as the groups of Bussmann et al. 2025 double in size
(arXiv 2503.17547)."""

_WIDE_KERNEL: dict[str, Any] = {"jumprelu_bandwidth": 0.3, "jumprelu_init_threshold": 0.5}
"""SAELens's defaults (0.05 and 0.01) are for long runs: within 200 steps on the embedded model no coefficient from 1 to 100 brings L0 below
197."""
_WARM_UP = 0.25
"""Share of the training over which a sparsity coefficient rises: at once, an L1 penalty that leads to L0 8 kills nearly all features."""

UNTRAINED_LR = 1e-12
"""Learning rate in the record of a floor that is started and not trained."""


@dataclass(frozen=True)
class CompareArm:
    """One kind of SAE in the comparison."""

    architecture: str
    role: Role
    meaning: str
    sae: Mapping[str, Any] = field(default_factory=dict)
    sparsity: Sparsity = "k"
    """The setting that decides L0. `k` is L0 itself. A coefficient is searched."""
    first_coefficient: float | None = None
    """The first coefficient of the search; None where L0 is a setting."""
    tuned_as: str | None = None
    """The arm with the same learning rate; None if it is searched for this arm."""
    matryoshka: bool = False
    """Whether there are nested dictionaries, each of which reconstructs."""
    wider: bool = False
    """Whether there are more features, with as many weights in total as the SAE with memory has."""
    frozen: Literal["decoder", "all"] | None = None
    """Weights that are not trained. `all` measures the start, which has no learning rate."""

    @property
    def is_compared(self) -> bool:
        """Whether this is one of the architectures, not a control or a floor."""
        return self.role in ("ours", "saelens")


ARMS: dict[str, CompareArm] = {
    "mtsae": CompareArm("mtsae", "ours", "encoder that reads the context"),
    MEMORY: CompareArm("mtsae", "ours", "decoder with memory", _PREDICTIVE),
    "mtsae_memory_batchtopk": CompareArm(
        "mtsae", "ours", "decoder with memory, BatchTopK", {**_PREDICTIVE, "activation": "batchtopk", **_FOLLOWS}
    ),
    "mtsae_memory_matryoshka": CompareArm(
        "mtsae", "ours", "decoder with memory, BatchTopK, nested dictionaries",
        {**_PREDICTIVE, "activation": "batchtopk", **_FOLLOWS}, matryoshka=True,
    ),
    "standard": CompareArm("standard", "saelens", "ReLU with an L1 penalty", sparsity="l1_coefficient", first_coefficient=4.0),
    "topk": CompareArm("topk", "saelens", "the k largest of a position"),
    "batchtopk": CompareArm("batchtopk", "saelens", "the k largest a position on average over the batch", _FOLLOWS),
    "jumprelu": CompareArm(
        "jumprelu", "saelens", "learned thresholds, L0 penalty", _WIDE_KERNEL, sparsity="l0_coefficient", first_coefficient=1.0
    ),
    "matryoshka_batchtopk": CompareArm(
        "matryoshka_batchtopk", "saelens", "nested dictionaries, each of which reconstructs", _FOLLOWS, matryoshka=True
    ),
    "topk_wider": CompareArm("topk", "control", "TopK with as many more weights as the prediction has", tuned_as="topk", wider=True),
    "memory_lag_1": CompareArm(
        "mtsae", "control", "memory of the last position alone", {**_PREDICTIVE, "memory_lags": [1], "memory_decays": []}, tuned_as=MEMORY
    ),
    "memory_averages": CompareArm(
        "mtsae", "control", "memory of running averages alone", {**_PREDICTIVE, "memory_lags": []}, tuned_as=MEMORY
    ),
    "frozen_decoder": CompareArm(
        "topk", "floor", "TopK with a random decoder that is not trained", tuned_as="topk", frozen="decoder"
    ),
    "untrained": CompareArm("topk", "floor", "TopK as it starts: random weights, b_dec at the mean", frozen="all"),
    "untrained_memory": CompareArm(
        "mtsae", "floor", "memory as it starts: prediction from regression, random features", _PREDICTIVE, frozen="all"
    ),
}  # fmt: skip
"""Everything that may be compared, by name."""


@dataclass(frozen=True)
class CompareSize:
    """How much work a comparison is."""

    l0: tuple[int, ...] = (8, 32)
    n_seeds: int = 3
    d_sae: int = 1_024
    training_tokens: int = 400_000
    search_tokens: int = 100_000
    lr: tuple[float, ...] = (4e-3, 8e-3, 1.6e-2)
    n_eval_contexts: int = 96


QUICK = CompareSize(n_seeds=1, d_sae=256, training_tokens=60_000, search_tokens=30_000, lr=(4e-3,), n_eval_contexts=16)
"""Enough to check that everything runs."""


def sae_settings(
    arm: CompareArm, further: Mapping[str, Any], l0: int, coefficient: float | None, d_sae: int, n_steps: int
) -> dict[str, Any]:
    """Return the settings of the SAE of one cell.

    Args:
        arm: the arm.
        further: the user's settings for this architecture.
        l0: the wanted L0.
        coefficient: the sparsity coefficient, for an arm that has one.
        d_sae: number of features.
        n_steps: number of training steps.
    """
    settings: dict[str, Any] = {**arm.sae, arm.sparsity: l0 if coefficient is None else coefficient}
    if coefficient is not None:
        settings[arm.sparsity.replace("coefficient", "warm_up_steps")] = int(_WARM_UP * n_steps)
    if arm.matryoshka:
        settings["matryoshka_widths"] = sorted({max(1, d_sae // share) for share in _MATRYOSHKA_SHARES})
    return settings | dict(further)
