"""Register the architecture `"mtsae"` with SAELens."""

from __future__ import annotations

from sae_lens import register_sae_class, register_sae_training_class

from mtsae_lens.sae.config import ARCHITECTURE, MTSAEConfig, MTTrainingSAEConfig
from mtsae_lens.sae.mtsae import MTSAE
from mtsae_lens.sae.training import MTTrainingSAE
from mtsae_lens.upstream import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY, unregister


def register() -> None:
    """Register the class for inference and the class for training.

    SAELens needs the class for inference first. After a reload of the modules the new classes replace the old ones.

    Raises:
        ValueError: another package has registered an architecture of this name.
    """
    ours = ((SAE_CLASS_REGISTRY, MTSAE), (SAE_TRAINING_CLASS_REGISTRY, MTTrainingSAE))
    for registry, new in ours:
        old = registry.get(ARCHITECTURE)
        if old is not None and (old[0].__module__, old[0].__qualname__) != (new.__module__, new.__qualname__):
            raise ValueError(f"{old[0].__module__}.{old[0].__qualname__} is already registered as {ARCHITECTURE!r}")
    unregister(ARCHITECTURE)
    register_sae_class(ARCHITECTURE, MTSAE, MTSAEConfig)
    register_sae_training_class(ARCHITECTURE, MTTrainingSAE, MTTrainingSAEConfig)
