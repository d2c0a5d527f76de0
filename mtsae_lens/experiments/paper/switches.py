"""Change one thing at a time: each arm trains with the paper's settings and enough tokens, except for one change.

Every arm trains on the same stored activations, in the same order for the same seed. The base arm is the paper's SAE
(`MTTrainingSAEConfig.paper`) with a warm-up of 5% of the steps. To run quickly, its width and its batch are smaller than the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mtsae_lens.data.blocks import StoredBlocks
from mtsae_lens.data.contexts import TokenTable
from mtsae_lens.evaluation.fidelity import evaluate_fidelity
from mtsae_lens.experiments.paper.measures import finite, row_metrics
from mtsae_lens.experiments.paper.published import SETTINGS
from mtsae_lens.experiments.paper.results import Metrics
from mtsae_lens.experiments.paper.setup import PaperAddress, PaperSetup
from mtsae_lens.experiments.paper.without_future import without_future
from mtsae_lens.sae.config import MTTrainingSAEConfig
from mtsae_lens.sae.training import MTTrainingSAE
from mtsae_lens.training.fit import fit
from mtsae_lens.training.options import TrainerOptions
from mtsae_lens.trials import Trial

BASE = "paper"
_WARM_UP_FRACTION = 0.05
_OWN_LR = 3e-3  # the default of `mtsae train`
_OWN_TAP_INIT = next(f.default for f in fields(MTTrainingSAEConfig) if f.name == "tap_init")


@dataclass(frozen=True)
class SwitchSettings:
    """The settings that all arms share."""

    n_steps: int = 200
    d_sae_per_d_in: int = 2
    batch_size_sequences: int = 4
    context_size: int = SETTINGS.context_size
    n_train_contexts: int = 1024
    n_test_contexts: int = 64
    """Held-out contexts whose stored activations every trial is measured on."""
    n_model_contexts: int = 32
    """Held-out contexts that go through the language model, where the loss is measured."""
    lr: float = SETTINGS.lr
    weight_decay: float = SETTINGS.weight_decay

    @property
    def batch_size_tokens(self) -> int:
        """Return the number of positions per batch."""
        return self.batch_size_sequences * self.context_size


@dataclass(frozen=True)
class Arm:
    """One way to train: the differences from the base."""

    label: str
    sae: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `MTTrainingSAEConfig` that differ."""
    defaults: bool = False
    """Whether to use the package's own defaults in place of the paper's settings."""
    n_steps: int | None = None
    lr: float | None = None
    weight_decay: float | None = None
    lr_warm_up_steps: int | None = None
    activation_scale: float = 1.0
    in_model: bool = False
    """Whether to measure the language model's loss too, which is slow."""


@dataclass(frozen=True)
class Switch:
    """A question, the arms that answer it, and the metrics to look at."""

    title: str
    question: str
    arms: tuple[str, ...]
    metrics: tuple[str, ...]


def arms(settings: SwitchSettings) -> dict[str, Arm]:
    """Return every arm by name; `paper` is the base.

    Args:
        settings: settings that all arms share.
    """
    steps = settings.n_steps
    longer = {n: f"steps_{n}" for n in (SETTINGS.n_steps, max(5, steps // 10), max(6, steps // 3), 3 * steps)}
    normalized = {"normalize_activations": "expected_average_only_in"}
    return {
        BASE: Arm("the paper's SAE", in_model=True),
        **{name: Arm(f"{n:,} steps", n_steps=n) for n, name in longer.items()},
        "warm_up_1000": Arm("1,000 warm-up steps", lr_warm_up_steps=SETTINGS.lr_warm_up_steps),
        "norm_rescaled": Arm("layer norm that restores the scale", sae={"scale_norm": "rescaled_layer_norm"}),
        "norm_none": Arm("no norm", sae={"scale_norm": "none"}),
        "taps_alike": Arm("all taps start equal", sae={"tap_init": "alike"}),
        "taps_offsets": Arm("taps start at different offsets", sae={"tap_init": _OWN_TAP_INIT}),
        "activations_x0.1": Arm("activations x 0.1", activation_scale=0.1),
        "activations_x10": Arm("activations x 10", activation_scale=10.0),
        "mse": Arm("squared error", sae={"reconstruction_loss": "mse"}),
        "mse_x0.1": Arm("squared error, x 0.1", sae={"reconstruction_loss": "mse"}, activation_scale=0.1),
        "mse_x10": Arm("squared error, x 10", sae={"reconstruction_loss": "mse"}, activation_scale=10.0),
        "causal": Arm("causal", sae={"padding": "causal"}, in_model=True),
        "zero": Arm("zero", sae={"padding": "zero"}, in_model=True),
        "fixed": Arm("defaults, the paper's learning rate", sae=normalized, defaults=True, weight_decay=0.0, in_model=True),
        "fixed_own_lr": Arm(
            "defaults, including the learning rate", sae=normalized, defaults=True, weight_decay=0.0, lr=_OWN_LR
        ),
    }


def switches(settings: SwitchSettings) -> list[Switch]:
    """Return the questions in the order of the report.

    Args:
        settings: settings that all arms share.
    """
    fidelity = ("explained_variance", "l0", "dead_features")
    budgets = sorted((name for name in arms(settings) if name.startswith("steps_")), key=lambda name: int(name[6:]))
    return [
        Switch("Token budget", "Does it learn if it is given more steps?", (*budgets[:-1], BASE, budgets[-1]), fidelity),
        Switch("Warm-up", "How much do 1,000 warm-up steps slow down a short run?", (BASE, "warm_up_1000"), fidelity),
        Switch(
            "Norm of the scales",
            "Layer norm discards the magnitude. Does restoring it help?",
            (BASE, "norm_rescaled", "norm_none"),
            fidelity,
        ),
        Switch(
            "Scales that start equal",
            "Do scales that start equal become different?",
            (BASE, "taps_alike", "taps_offsets"),
            ("scale_cosine", "scale_cosine_untrained", "explained_variance"),
        ),
        Switch(
            "Sparsity weight and scale of the activations",
            f"What does lambda1 = {MTTrainingSAEConfig.paper(2, 2).l1_coefficient} mean when activations are ten times smaller or larger?",
            ("activations_x0.1", BASE, "activations_x10", "mse_x0.1", "mse", "mse_x10"),
            ("l0", "explained_variance", "dead_features"),
        ),
        Switch(
            "Padding",
            "How much is it worth that circular padding reads the future?",
            (BASE, "zero", "causal"),
            ("explained_variance", "ce_loss_score", "future_leak"),
        ),
        Switch(
            "All fixes together",
            "How far do the package's defaults get in the same number of steps?",
            (BASE, "fixed", "fixed_own_lr"),
            fidelity,
        ),
    ]


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
    h_test: Float[Tensor, "m pos d_in"]
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
        h_train = setup.activations(setup.train_tokens(settings.n_train_contexts))
        return cls(setup, settings, h_train, setup.activations(test.tokens), table)

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
        metrics = {"scale_cosine_untrained": row_metrics(sae, h_test)["scale_cosine"]}
        n_steps = arm.n_steps or settings.n_steps
        warm_up = arm.lr_warm_up_steps if arm.lr_warm_up_steps is not None else int(_WARM_UP_FRACTION * n_steps)
        fit(
            sae,
            StoredBlocks(self.h_train * arm.activation_scale, settings.batch_size_sequences, seed=seed),
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
        return metrics | row_metrics(sae, h_test) | (self.in_model(sae) if arm.in_model else {})

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
    return _cached_activations(address, settings).run_arm(arms(settings)[name], seed)


def switch_trials(setup: PaperSetup, settings: SwitchSettings, n_seeds: int) -> dict[str, Trial]:
    """Return the computation of every trial by its name (`arm/seed_N`); it can run in another process.

    Args:
        setup: model, hook and text.
        settings: settings that all arms share.
        n_seeds: number of seeds.
    """
    return {
        f"{name}/seed_{seed}": partial(_run_arm, setup.address, settings, name, seed)
        for name in arms(settings)
        for seed in range(n_seeds)
    }


def settings_record(settings: SwitchSettings) -> dict[str, Any]:
    """Return what the results depend on, as JSON.

    Args:
        settings: settings that all arms share.
    """
    return asdict(settings) | {"arms": {name: asdict(arm) for name, arm in arms(settings).items()}}


def values_by_arm(results: Mapping[str, Metrics]) -> dict[str, dict[str, list[float | None]]]:
    """Collect the results of trials `arm/seed_N` as lists over seeds, by arm and metric.

    Args:
        results: metrics by trial.
    """
    collected: dict[str, dict[str, list[float | None]]] = {}
    for trial, metrics in results.items():
        arm = collected.setdefault(trial.rpartition("/")[0], {})
        for name, value in metrics.items():
            arm.setdefault(name, []).append(value)
    return collected
