"""Train an SAE on planted sequences.

A seed stands for a dictionary, a pairing of cues and patterns, a stream of training sequences and an initialization. Every architecture
trains on the same rows of the same blocks, with the same width and schedule.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, TrainingSAE

from mtsae_lens.data.planted import PlantedBlocks, PlantedConfig, PlantedFeatures
from mtsae_lens.sae.config import MTTrainingSAEConfig
from mtsae_lens.training.dilations import select_dilations
from mtsae_lens.training.fit import fit
from mtsae_lens.training.options import TrainerOptions
from mtsae_lens.upstream import SAE_TRAINING_CLASS_REGISTRY

N_CONTEXTS_TO_SELECT_ON = 512


@dataclass(frozen=True)
class PlantedArm:
    """One SAE to train: an architecture of SAELens's registry and its own settings, on data that may differ from the base.

    `dilations="auto"` selects them from the first sequences (`select_dilations`).
    """

    architecture: str
    sae: Mapping[str, Any] = field(default_factory=dict)
    planted: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `PlantedConfig` that differ."""


@dataclass(frozen=True)
class PlantedSettings:
    """The settings that all arms share."""

    planted: PlantedConfig = field(default_factory=PlantedConfig)
    d_sae: int = 256
    n_steps: int = 3_000
    batch_size_sequences: int = 4
    lr: float = 3e-3
    n_test_sequences: int = 128
    """Sequences of SELECT, and as many of TEST."""

    @property
    def n_training_tokens(self) -> int:
        """Return the number of training positions, the first of each sequence included."""
        return self.n_steps * self.batch_size_sequences * self.planted.context_size


def train_arm(arm: PlantedArm, settings: PlantedSettings, seed: int) -> tuple[SAE[Any], PlantedFeatures]:
    """Train an SAE on planted sequences.

    Args:
        arm: the SAE to train.
        settings: settings that all arms share.
        seed: seed of the dictionary, the sequences and the SAE's initialization.

    Returns:
        The inference SAE that SAELens makes of it, and the planted features.
    """
    cfg = replace(settings.planted, **{"seed": seed, **arm.planted})
    features = PlantedFeatures(cfg)
    config_class = SAE_TRAINING_CLASS_REGISTRY[arm.architecture][1]
    own: dict[str, Any] = {"normalize_activations": "expected_average_only_in", **arm.sae}
    stream = PlantedBlocks(features, settings.batch_size_sequences, seed=seed)
    if issubclass(config_class, MTTrainingSAEConfig):
        own["context_size"] = cfg.context_size
    if own.get("dilations") == "auto":
        block = next(replace(stream, block_size_batches=N_CONTEXTS_TO_SELECT_ON // settings.batch_size_sequences).blocks(0))
        own["dilations"] = select_dilations(block.h, block.masked, max_lag=3 * cfg.context_size // 4)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sae: TrainingSAE[Any] = TrainingSAE.from_dict(config_class(d_in=cfg.d_in, d_sae=settings.d_sae, **own).to_dict())
    fit(
        sae,
        stream,
        n_steps=settings.n_steps,
        batch_size_tokens=settings.batch_size_sequences * cfg.context_size,
        lr=settings.lr,
        lr_warm_up_steps=settings.n_steps // 20,
        lr_end=settings.lr / 20,
        options=TrainerOptions(b_dec_init="zeros", log_every_n_steps=100),  # as for the figures in docs/paper.md
    )
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        return SAE.load_from_disk(Path(folder)), features
