"""Which SAEs are trained on planted sequences: the comparison, the strength of the echo, and the three directions that the paper left open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtsae_lens.experiments.planted.trials import PlantedArm
from mtsae_lens.sae.separation import SEPARATIONS

OURS = "mtsae"
SPARSITY: dict[str, tuple[dict[str, float], ...]] = {
    "mtsae": ({"k": 4}, {"k": 6}, {"k": 8}),
    "topk": ({"k": 4}, {"k": 6}, {"k": 8}),
    "batchtopk": ({"k": 4}, {"k": 6}, {"k": 8}),
    "jumprelu": ({"l0_coefficient": 0.3}, {"l0_coefficient": 1.0}, {"l0_coefficient": 3.0}),
    "standard": ({"l1_coefficient": 0.3}, {"l1_coefficient": 1.0}, {"l1_coefficient": 3.0}),
}
"""What each architecture may choose from on TUNE."""

FAR_LAGS: dict[str, Any] = {"lags": ((3, 6), (12, 24), (32, 63))}
"""Patterns that the default dilations do not reach, or not exactly."""

LONG = (0, 1, 2, 4, 8, 16, 32, 63)
"""Dilations with a receptive field of 127 positions."""

SEPARATION_COEFFICIENT = 10.0
"""About half of the squared error of an input whose norm is scaled to sqrt(d_in) = 8, so that the loss matters."""

ECHOES = (0.6, 1.2)
"""Magnitudes of the echo beside the default, weaker and stronger."""

N_SIDE_SEEDS = 2
"""Seeds of what stands beside the comparison: other magnitudes of the echo, and the ablations; each has 32 patterns."""


def sparsity_arms(architectures: Mapping[str, tuple[dict[str, float], ...]]) -> dict[str, PlantedArm]:
    """Return every architecture at every sparsity that it may choose from."""
    return {
        f"{architecture}/{number}": PlantedArm(architecture, setting)
        for architecture, settings in architectures.items()
        for number, setting in enumerate(settings)
    }


def echo_arms(chosen: Mapping[str, PlantedArm]) -> dict[str, PlantedArm]:
    """Return MTSAE and the nearest pointwise architecture at other strengths of the echo."""
    return {
        f"{name}/echo_{echo:g}": PlantedArm(chosen[name].architecture, chosen[name].sae, {"echo_magnitude": echo})
        for echo in ECHOES
        for name in (OURS, "topk")
    }


def direction_arms(ours: PlantedArm) -> dict[str, dict[str, PlantedArm]]:
    """Return the ablations by direction; the first arm of each is the plain version, and `default` is trained already for the comparison."""

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
        "range": {
            "default, far lags": arm(FAR_LAGS),
            "selected dilations": arm(FAR_LAGS, dilations="auto"),
            "learned dilations": arm(FAR_LAGS, learn_dilations=True),
            "long dilations": arm(FAR_LAGS, dilations=LONG),
        },
    }
