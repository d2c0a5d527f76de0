"""Run trials on planted sequences: what an MTSAE and SAELens's SAEs recover of the same ground truth, seed by seed.

A seed stands for a dictionary, a pairing of cues and patterns, a stream of training sequences and an initialization. Every architecture
trains on the same rows of the same blocks, with the same width and schedule.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, TrainingSAE

from mtsae_lens.data.planted import PlantedBlocks, PlantedConfig, PlantedFeatures
from mtsae_lens.evaluation.recovery import PlantedSplits, linear_oracle, recover
from mtsae_lens.evaluation.scales import scale_predictivity
from mtsae_lens.evaluation.time_scales import mean_run_length, temporal_profiles
from mtsae_lens.experiments.parts import as_json
from mtsae_lens.experiments.planted.results import OracleTrial, PlantedTrial, TemporalTrial, Values
from mtsae_lens.records import fields_of
from mtsae_lens.sae.config import MTTrainingSAEConfig
from mtsae_lens.sae.hierarchy import feature_groups
from mtsae_lens.sae.mtsae import TemporalEncoder
from mtsae_lens.sae.separation import SEPARATIONS, separation_loss
from mtsae_lens.sae.temporal import read_offsets
from mtsae_lens.training.dilations import select_dilations
from mtsae_lens.training.fit import fit
from mtsae_lens.training.options import TrainerOptions
from mtsae_lens.trials import Trial
from mtsae_lens.upstream import SAE_TRAINING_CLASS_REGISTRY

TUNE_SEED = 1_000  # seed of a dictionary that is not part of the results
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
        _, h = next(replace(stream, block_size_batches=N_CONTEXTS_TO_SELECT_ON // settings.batch_size_sequences).blocks(0))
        own["dilations"] = select_dilations(h, max_lag=3 * cfg.context_size // 4)
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


def planted_trial(arm: PlantedArm, settings: PlantedSettings, seed: int) -> PlantedTrial:
    """Train one arm with one seed and score it.

    Args:
        arm: the SAE to train.
        settings: settings that all arms share.
        seed: seed of the dictionary, the sequences and the SAE's initialization.

    Returns:
        A `TemporalTrial` for an SAE with a temporal encoder.
    """
    sae, features = train_arm(arm, settings, seed)
    return score(sae, PlantedSplits(features, settings.n_test_sequences))


@torch.no_grad()
def score(sae: SAE[Any], splits: PlantedSplits) -> PlantedTrial:
    """Score a trained SAE, as `planted_trial` does.

    Args:
        sae: the SAE.
        splits: sequences to match on and to score on.
    """
    features, recovery = splits.features, recover(sae, splits)
    select, h = (sample.h.to(sae.device) for sample in (splits.select, splits.test))
    feature_acts = sae.encode(h)[:, 1:]
    plain = PlantedTrial(
        kind=tuple(features.kinds),
        time_scale=tuple(features.time_scales),
        matched=tuple(recovery.matched.tolist()),
        correlation=_rounded(recovery.correlation),
        f1=_rounded(recovery.f1),
        onset_recall=_rounded(recovery.onset_recall),
        cosine=_rounded(recovery.cosine),
        run_length=_rounded(mean_run_length(feature_acts[..., recovery.matched] > 0)),
        mcc=recovery.mcc,
        explained_variance=recovery.explained_variance,
        explained_variance_clean=recovery.explained_variance_clean,
        l0=float((feature_acts != 0).sum(dim=-1).float().mean()),
    )
    if not isinstance(sae, TemporalEncoder):
        return plain
    profiles = temporal_profiles(sae, h.split(32), recovery.matched)
    lags = features.cfg.lags
    at_lags = torch.stack([profiles.share_at(pair) for pair in lags]) if lags else torch.zeros(1, features.n_features)
    nested = sae.cfg.hierarchy == "nested"
    return TemporalTrial(
        **fields_of(plain),
        offsets=tuple(profiles.offsets),
        profile=tuple(_rounded(row) for row in profiles.shares),
        context_share=_rounded(profiles.context_share),
        context_lag=_rounded(profiles.context_lag),
        named_lags=tuple(at_lags.argmax(dim=0).tolist()),
        dilations=tuple(round(dilation, 3) for dilation in sae.dilations),
        separation=_separation(sae, h),
        predictivity=_finite(scale_predictivity(sae, select.split(32), h.split(32)).summary(sae.cfg.dilations)),
        group=tuple(feature_groups(sae.cfg.d_sae, len(sae.cfg.dilations))[recovery.matched].tolist()) if nested else None,
    )


def _separation(sae: TemporalEncoder, h: torch.Tensor) -> dict[str, float]:
    """Measure every separation loss, also those that were not used in training."""
    x, walls = sae.read_contexts(h)
    z, keep = sae.encode_scales(x, walls), ~walls
    return {name: float(separation_loss(name, z, sae.filters, keep)) for name in SEPARATIONS}


def oracle_trial(settings: PlantedSettings, planted: Mapping[str, Any], seed: int) -> OracleTrial:
    """Measure the F1 of supervised linear probes (oracles): on one position, and on the positions that the default MTSAE reads.

    Args:
        settings: settings that all arms share.
        planted: fields of `PlantedConfig` that differ.
        seed: seed of the dictionary.
    """
    features = PlantedFeatures(replace(settings.planted, **{"seed": seed, **planted}))
    splits = PlantedSplits(features, settings.n_test_sequences)
    default = MTTrainingSAEConfig(d_in=features.cfg.d_in, d_sae=settings.d_sae, k=1)
    offsets = read_offsets(default.kernel_size, default.dilations, default.padding)
    return OracleTrial(
        kind=tuple(features.kinds),
        time_scale=tuple(features.time_scales),
        pointwise=_rounded(linear_oracle(splits)),
        context=_rounded(linear_oracle(splits, offsets)),
    )


def trials(arms: Mapping[str, PlantedArm], settings: PlantedSettings, seeds: Iterable[int]) -> dict[str, Trial]:
    """Return the computation of every trial by its name (`arm/seed_N`), seed after seed, so that a stopped run has complete seeds.

    Args:
        arms: arms by name.
        settings: settings that all arms share.
        seeds: the seeds.
    """
    return {
        f"{name}/seed_{seed}": as_json(partial(planted_trial, arm, settings, seed))
        for seed in seeds
        for name, arm in arms.items()
    }


def settings_record(arms: Mapping[str, PlantedArm], settings: PlantedSettings) -> dict[str, Any]:
    """Return what the results depend on, as JSON.

    Args:
        arms: arms by name.
        settings: settings that all arms share.
    """
    return {"settings": asdict(settings), "arms": {name: asdict(arm) for name, arm in arms.items()}}


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _rounded(values: torch.Tensor) -> Values:
    """Round to four decimals; values that are not finite become None."""
    return tuple(round(value, 4) if math.isfinite(value) else None for value in values.cpu().double().tolist())
