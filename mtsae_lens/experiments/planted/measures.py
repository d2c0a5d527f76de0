"""Measure what an MTSAE, SAELens's SAEs and supervised probes recover of the same planted sequences, seed by seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from sae_lens import SAE

from mtsae_lens.data.planted import PlantedFeatures
from mtsae_lens.evaluation.recovery import PlantedSplits, linear_oracle, recover
from mtsae_lens.evaluation.scales import scale_predictivity
from mtsae_lens.evaluation.time_scales import mean_run_length, temporal_profiles
from mtsae_lens.experiments.parts import as_json
from mtsae_lens.experiments.planted.results import OracleTrial, PlantedTrial, TemporalTrial, Values
from mtsae_lens.experiments.planted.training import PlantedArm, PlantedSettings, train_arm
from mtsae_lens.records import fields_of
from mtsae_lens.sae.config import MTTrainingSAEConfig
from mtsae_lens.sae.hierarchy import feature_groups
from mtsae_lens.sae.separation import SEPARATIONS, separation_loss
from mtsae_lens.sae.temporal import read_offsets
from mtsae_lens.sae.temporal_encoder import TemporalEncoder
from mtsae_lens.trials import Trial


def measure_arm(arm: PlantedArm, settings: PlantedSettings, seed: int) -> PlantedTrial:
    """Train one arm with one seed and score it.

    Args:
        arm: the SAE to train.
        settings: settings that all arms share.
        seed: seed of the dictionary, the sequences and the SAE's initialization.

    Returns:
        A `TemporalTrial` for an SAE with a temporal encoder.
    """
    sae, features = train_arm(arm, settings, seed)
    return measure_sae(sae, PlantedSplits(features, settings.n_test_sequences))


@torch.no_grad()
def measure_sae(sae: SAE[Any], splits: PlantedSplits) -> PlantedTrial:
    """Score a trained SAE, as `measure_arm` does.

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


def measure_oracle(settings: PlantedSettings, planted: Mapping[str, Any], seed: int) -> OracleTrial:
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


def make_trials(arms: Mapping[str, PlantedArm], settings: PlantedSettings, seeds: Iterable[int]) -> dict[str, Trial]:
    """Return the computation of every trial by its name (`arm/seed_N`), seed after seed, so that a stopped run has complete seeds.

    Args:
        arms: arms by name.
        settings: settings that all arms share.
        seeds: the seeds.
    """
    return {
        f"{name}/seed_{seed}": as_json(partial(measure_arm, arm, settings, seed))
        for seed in seeds
        for name, arm in arms.items()
    }


def record_settings(arms: Mapping[str, PlantedArm], settings: PlantedSettings) -> dict[str, Any]:
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
