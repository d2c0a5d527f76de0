"""Define what is changed one thing at a time: the settings that all arms share, the arms, and the questions that they answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from mtsae_lens.experiments.paper.published import SETTINGS
from mtsae_lens.sae.config import MTTrainingSAEConfig

BASE = "paper"
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


def build_arms(settings: SwitchSettings) -> dict[str, Arm]:
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


def list_switches(settings: SwitchSettings) -> list[Switch]:
    """Return the questions in the order of the report.

    Args:
        settings: settings that all arms share.
    """
    fidelity = ("explained_variance", "l0", "dead_features")
    budgets = sorted((name for name in build_arms(settings) if name.startswith("steps_")), key=lambda name: int(name[6:]))
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
