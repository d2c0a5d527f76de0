"""Register the architectures `"mtsae"` and `"mtsae_transcoder"` with SAELens."""

from __future__ import annotations

from typing import Any

from sae_lens import register_sae_class, register_sae_training_class

from mtsae_lens.sae.config import ARCHITECTURE, MTSAEConfig, MTTrainingSAEConfig
from mtsae_lens.sae.mtsae import MTSAE
from mtsae_lens.sae.training import MTTrainingSAE
from mtsae_lens.sae.transcoder import (
    TRANSCODER,
    MTSAETranscoder,
    MTSAETranscoderConfig,
    MTTrainingTranscoder,
    MTTrainingTranscoderConfig,
)
from mtsae_lens.upstream import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY, unregister


def register() -> None:
    """Register the classes for inference and the classes for training.

    SAELens needs the class for inference first. After a reload of the modules the new classes replace the old ones.

    Raises:
        ValueError: another package has registered an architecture of one of these names.
    """
    _register(ARCHITECTURE, (MTSAE, MTSAEConfig), (MTTrainingSAE, MTTrainingSAEConfig))
    _register(TRANSCODER, (MTSAETranscoder, MTSAETranscoderConfig), (MTTrainingTranscoder, MTTrainingTranscoderConfig))


def _register(architecture: str, inference: tuple[Any, Any], training: tuple[Any, Any]) -> None:
    for registry, (new, _) in ((SAE_CLASS_REGISTRY, inference), (SAE_TRAINING_CLASS_REGISTRY, training)):
        old = registry.get(architecture)
        if old is not None and (old[0].__module__, old[0].__qualname__) != (new.__module__, new.__qualname__):
            raise ValueError(f"{old[0].__module__}.{old[0].__qualname__} is already registered as {architecture!r}")
    unregister(architecture)
    register_sae_class(architecture, *inference)
    register_sae_training_class(architecture, *training)
