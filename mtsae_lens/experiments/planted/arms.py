"""Define which SAEs are trained on planted sequences: the comparison, the strength of the echo, and the three directions that the paper
left open.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtsae_lens.experiments.planted.training import PlantedArm
from mtsae_lens.sae.separation import SEPARATIONS

OURS = "mtsae"
SPARSITY: dict[str, tuple[dict[str, float], ...]] = {
    "mtsae": ({"k": 4}, {"k": 6}, {"k": 8}),
    "topk": ({"k": 4}, {"k": 6}, {"k": 8}),
    "batchtopk": ({"k": 4}, {"k": 6}, {"k": 8}),
    "jumprelu": ({"l0_coefficient": 0.3}, {"l0_coefficient": 1.0}, {"l0_coefficient": 3.0}),
    "standard": ({"l1_coefficient": 0.3}, {"l1_coefficient": 1.0}, {"l1_coefficient": 3.0}),
}
"""Sparsity settings of each architecture that are tried on TUNE."""

FAR_LAGS: dict[str, Any] = {"lags": ((3, 6), (12, 24), (32, 63))}
"""Lags of patterns that the default dilations do not read, or do not read exactly."""

LONG = (0, 1, 2, 4, 8, 16, 32, 63)
"""Dilations with a receptive field of 127 positions."""

SEPARATION_COEFFICIENT = 10.0
"""Coefficient of a separation loss. It is about half of the squared error of an input of norm sqrt(d_in) = 8, so that the loss has an
effect.
"""

ECHOES = (0.6, 1.2)
"""Magnitudes of the echo, weaker and stronger than the default."""

TUNE_SEED = 1_000
"""Seed of a dictionary that is not part of the results."""

N_SIDE_SEEDS = 2
"""Number of seeds of the additional experiments: other magnitudes of the echo, and the ablations. Each seed has 32 patterns."""


def build_sparsity_arms(architectures: Mapping[str, tuple[dict[str, float], ...]]) -> dict[str, PlantedArm]:
    """Return every architecture with each of its sparsity settings.

    Args:
        architectures: sparsity settings by architecture.
    """
    return {
        f"{architecture}/{number}": PlantedArm(architecture, setting)
        for architecture, settings in architectures.items()
        for number, setting in enumerate(settings)
    }


def build_echo_arms(chosen: Mapping[str, PlantedArm]) -> dict[str, PlantedArm]:
    """Return MTSAE and the nearest pointwise architecture with other magnitudes of the echo.

    Args:
        chosen: the arm of each architecture.
    """
    return {
        f"{name}/echo_{echo:g}": PlantedArm(chosen[name].architecture, chosen[name].sae, {"echo_magnitude": echo})
        for echo in ECHOES
        for name in (OURS, "topk")
    }


def build_direction_arms(ours: PlantedArm) -> dict[str, dict[str, PlantedArm]]:
    """Return the ablations by direction. The first arm of each is the plain version; `default` is already trained for the comparison.

    Args:
        ours: the arm of MTSAE.
    """

    def arm(planted: Mapping[str, Any] | None = None, **sae: Any) -> PlantedArm:
        return PlantedArm(ours.architecture, {**ours.sae, **sae}, planted or {})

    return {
        "initialization": {
            "default": arm(),
            "tap_init=far": arm(tap_init="far"),
            "tap_init=alike": arm(tap_init="alike"),
            "tap_init=conv": arm(tap_init="conv"),
            "context_gain=1": arm(context_gain=1.0),
            "scale_norm=none": arm(scale_norm="none"),
            "scale_norm=layer_norm": arm(scale_norm="layer_norm"),
            "no scale for the token alone": arm(dilations=(1, 2, 4, 8)),
        },
        "separation": {
            "default": arm(),
            **{name: arm(separation=name, separation_coefficient=SEPARATION_COEFFICIENT) for name in SEPARATIONS},
        },
        "hierarchy": {"default": arm(), "nested": arm(hierarchy="nested")},
        "memory": {"default": arm(), "decoder with memory": arm(memory="predictive", dilations=(0,))},
        "range": {
            "default, far lags": arm(FAR_LAGS),
            "selected dilations": arm(FAR_LAGS, dilations="auto"),
            "learned dilations": arm(FAR_LAGS, learn_dilations=True),
            "long dilations": arm(FAR_LAGS, dilations=LONG),
        },
    }
