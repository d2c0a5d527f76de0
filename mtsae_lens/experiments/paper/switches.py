"""Change one thing at a time: each arm trains with the paper's settings and enough tokens, except for one change.

Every arm trains on the same stored activations, in the same order for the same seed. The base arm is the paper's SAE
(`MTTrainingSAEConfig.paper`) with a warm-up of 5% of the steps. To run quickly, its width and its batch are smaller than the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mtsae_lens.data.blocks import StoredBlocks
from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.evaluation.fidelity import evaluate_fidelity
from mtsae_lens.experiments.paper.measures import finite, row_metrics
from mtsae_lens.experiments.paper.results import Metrics, SwitchesResult
from mtsae_lens.experiments.paper.setup import PaperAddress, PaperSetup
from mtsae_lens.experiments.paper.spreads import compute_spread
from mtsae_lens.experiments.paper.switch_arms import Arm, SwitchSettings, build_arms
from mtsae_lens.experiments.paper.without_future import without_future
from mtsae_lens.sae.config import MTTrainingSAEConfig
from mtsae_lens.sae.training import MTTrainingSAE
from mtsae_lens.training.fit import fit
from mtsae_lens.training.options import TrainerOptions
from mtsae_lens.trials import Trial, run_trials

_WARM_UP_FRACTION = 0.05


def build_sae(arm: Arm, settings: SwitchSettings, d_in: int, seed: int, device: str) -> MTTrainingSAE:
    """Build the untrained SAE of an arm.

    Args:
        arm: the arm.
        settings: settings that all arms share.
        d_in: width of the activations.
        seed: seed of the initialization.
        device: device of the SAE.
    """
    shared = {"context_size": settings.context_size, "device": device, **arm.sae}
    d_sae = settings.d_sae_per_d_in * d_in
    cfg = (
        MTTrainingSAEConfig(d_in=d_in, d_sae=d_sae, **shared)
        if arm.defaults
        else MTTrainingSAEConfig.paper(d_in, d_sae, **shared)
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sae = MTTrainingSAE(cfg)
    return sae


@dataclass(frozen=True, eq=False)
class CachedActivations:
    """Activations that are computed once for all trials."""

    setup: PaperSetup
    settings: SwitchSettings
    h_train: Float[Tensor, "n pos d_in"]
    masked_train: Bool[Tensor, "n pos"]
    h_test: Float[Tensor, "m pos d_in"]
    masked_test: Bool[Tensor, "m pos"]
    table: TokenTable

    @classmethod
    def read(cls, setup: PaperSetup, settings: SwitchSettings) -> CachedActivations:
        """Run the language model and keep its activations.

        Args:
            setup: model, hook and text.
            settings: settings that all arms share.
        """
        test = setup.test_table(settings.n_test_contexts)
        table = setup.test_table(min(settings.n_model_contexts, len(test)))
        train = setup.activations(setup.train_tokens(settings.n_train_contexts))
        return cls(setup, settings, *train, *setup.activations(test.tokens), table)

    def run_arm(self, arm: Arm, seed: int) -> Metrics:
        """Train one arm with one seed, and measure it on held-out activations.

        Args:
            arm: the arm.
            seed: seed of the run.

        Returns:
            `row_metrics` and `scale_cosine_untrained`. If the arm asks for the model's loss, also `ce_loss_score`, `kl_div_score`,
            `future_leak`, and for an encoder that reads later positions `ce_loss_score_withhold` and `ce_loss_score_replace`.
        """
        settings, h_test = self.settings, self.h_test * arm.activation_scale
        sae = build_sae(arm, settings, self.h_train.shape[-1], seed, self.setup.device)
        metrics = {"scale_cosine_untrained": row_metrics(sae, h_test, self.masked_test)["scale_cosine"]}
        n_steps = arm.n_steps or settings.n_steps
        warm_up = arm.lr_warm_up_steps if arm.lr_warm_up_steps is not None else int(_WARM_UP_FRACTION * n_steps)
        fit(
            sae,
            StoredBlocks(
                self.h_train * arm.activation_scale, settings.batch_size_sequences, seed=seed, masked=self.masked_train
            ),
            n_steps=n_steps,
            batch_size_tokens=settings.batch_size_tokens,
            lr=arm.lr or settings.lr,
            lr_warm_up_steps=warm_up,
            options=TrainerOptions(
                weight_decay=settings.weight_decay if arm.weight_decay is None else arm.weight_decay,
                b_dec_init="zeros",  # as in the paper
                log_every_n_steps=n_steps,
            ),
        )
        return metrics | row_metrics(sae, h_test, self.masked_test) | (self.in_model(sae) if arm.in_model else {})

    def in_model(self, sae: MTTrainingSAE) -> Metrics:
        """Measure how the reconstruction changes the language model's loss, with and without access to later positions.

        Args:
            sae: the trained SAE.
        """
        sae.cfg.metadata.hook_name = self.setup.hook_name
        names = ("ce_loss_score", "kl_div_score", "future_leak")
        measured = evaluate_fidelity(sae, self.setup.model, self.setup.cutter, self.table)
        metrics = {name: measured[name] for name in names}
        if sae.cfg.padding != "causal":
            for future in ("withhold", "replace"):
                blind = without_future(sae, future)
                measured = evaluate_fidelity(blind, self.setup.model, self.setup.cutter, self.table)
                metrics[f"ce_loss_score_{future}"] = measured["ce_loss_score"]
        return finite(metrics)


@lru_cache(maxsize=1)
def _cached_activations(address: PaperAddress, settings: SwitchSettings) -> CachedActivations:
    """Read the activations when the first trial of a process needs them."""
    return CachedActivations.read(PaperSetup.load(*address), settings)


def _run_arm(address: PaperAddress, settings: SwitchSettings, name: str, seed: int) -> Metrics:
    return _cached_activations(address, settings).run_arm(build_arms(settings)[name], seed)


def make_switch_trials(setup: PaperSetup, settings: SwitchSettings, n_seeds: int) -> dict[str, Trial]:
    """Return the computation of every trial by its name (`arm/seed_N`); it can run in another process.

    Args:
        setup: model, hook and text.
        settings: settings that all arms share.
        n_seeds: number of seeds.
    """
    return {
        f"{name}/seed_{seed}": partial(_run_arm, setup.address, settings, name, seed)
        for name in build_arms(settings)
        for seed in range(n_seeds)
    }


def record_settings(settings: SwitchSettings) -> dict[str, Any]:
    """Return what the results depend on, as JSON.

    Args:
        settings: settings that all arms share.
    """
    return asdict(settings) | {"arms": {name: asdict(arm) for name, arm in build_arms(settings).items()}}


def collect_values(results: Mapping[str, Metrics]) -> dict[str, dict[str, tuple[float | None, ...]]]:
    """Collect the results of trials `arm/seed_N` as one value per seed, by arm and metric.

    Args:
        results: metrics by trial.
    """
    collected: dict[str, dict[str, list[float | None]]] = {}
    for trial, metrics in results.items():
        arm = collected.setdefault(trial.rpartition("/")[0], {})
        for name, value in metrics.items():
            arm.setdefault(name, []).append(value)
    return {arm: {name: tuple(values) for name, values in metrics.items()} for arm, metrics in collected.items()}


def measure_switches(setup: PaperSetup, settings: SwitchSettings, n_seeds: int, out: Path, n_workers: int) -> SwitchesResult:
    """Train the paper's SAE with enough tokens and one change at a time, and measure it on held-out text.

    Args:
        setup: model, hook and text.
        settings: settings that all arms share.
        n_seeds: number of seeds.
        out: folder of the trials.
        n_workers: number of processes.
    """
    record, trials = setup.record | record_settings(settings), make_switch_trials(setup, settings, n_seeds)
    values = collect_values(run_trials(out / "trials", record, trials, "Switches", n_workers=n_workers))
    return SwitchesResult(
        values=values,
        summary={
            arm: {name: found for name, column in metrics.items() if (found := compute_spread(column))}
            for arm, metrics in values.items()
        },
        labels={name: arm.label for name, arm in build_arms(settings).items()},
    )
