"""Forgetting by changing weights: a model finetuned on forget and retain text, seen at chosen steps.

AdamW without weight decay, gradients clipped to norm 1. The model that is given never changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.contexts import ContextCutter, TokenTable
from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.progress import track
from mtsae_lens.unlearning.finetuning.batches import mixed_batches
from mtsae_lens.unlearning.finetuning.clones import clone_model, clone_to_train, set_weights
from mtsae_lens.unlearning.finetuning.losses import Step, UnlearningLoss

MAX_GRADIENT_NORM = 1.0


class DivergedError(ConfigError):
    """The loss or its gradient is not finite: the learning rate is too high for this loss on this model."""


@dataclass(frozen=True)
class FinetuneSettings:
    """How long and at which rate to train, and which snapshots to take."""

    lr: float
    n_steps: int
    batch_size: int = 8
    """Contexts of forget text in a step, and of retain text too."""
    snapshots: tuple[int, ...] = ()
    """Steps after which the model is handed out, rising, 0 being the model as it was; none: the last alone. For a loss that negates
    its updates these are the multiples that are subtracted, each of all `n_steps` updates."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.lr > 0 or self.n_steps < 1 or self.batch_size < 1:
            raise ConfigError(
                f"finetuning needs lr > 0, n_steps >= 1 and batch_size >= 1; got {self.lr}, {self.n_steps} and {self.batch_size}"
            )
        if any(step < 0 for step in self.snapshots) or list(self.snapshots) != sorted(set(self.snapshots)):
            raise ConfigError(f"snapshots must rise from 0 or later; got {self.snapshots}")

    def snapshot_steps(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Return the snapshots as steps of this run, or the default if none are given.

        Raises:
            ConfigError: one lies after the last step.
        """
        if max(self.snapshots, default=0) > self.n_steps:
            raise ConfigError(f"snapshot {max(self.snapshots)} lies after the last of {self.n_steps} steps; raise n_steps")
        return self.snapshots or default


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A copy of the model with the weights after a step (or, of a loss that negates, less `step` times the updates)."""

    step: int
    model: AnyHookedModel


def finetune(
    model: AnyHookedModel,
    loss: UnlearningLoss,
    forget: TokenTable,
    retain: Sequence[TokenTable],
    cutter: ContextCutter,
    settings: FinetuneSettings,
) -> Iterator[Snapshot]:
    """Train a clone of a model and hand out copies of it, each as soon as it is there; the same for the same seed.

    A model in half precision is trained and handed out in float32 (`clone_to_train`).

    Args:
        model: is left as it is.
        loss: what to minimize.
        forget: the text to forget; only counted tokens enter the loss, of questions the answers.
        retain: texts to retain, each in equal parts; ignored by a loss that does not use them.
        cutter: says which tokens are special.
        settings: rate, steps, snapshots.

    Raises:
        ConfigError: a snapshot after the last step.
        DivergedError: a rate at which the loss stops being a number.
        DataError: the loss needs retain text and there is none, or no token of a text counts.
    """
    wanted = (settings.snapshots or (1,)) if loss.negates else settings.snapshot_steps((settings.n_steps,))
    if loss.uses_retain and not retain:
        raise DataError(f"{type(loss).__name__} needs retain text; give at least one table of it")
    return _finetune(model, loss, forget, retain if loss.uses_retain else (), cutter, settings, wanted)


def _finetune(
    model: AnyHookedModel,
    loss: UnlearningLoss,
    forget: TokenTable,
    retain: Sequence[TokenTable],
    cutter: ContextCutter,
    settings: FinetuneSettings,
    wanted: tuple[int, ...],
) -> Iterator[Snapshot]:
    trained = clone_to_train(model)
    device, size, seed = model.cfg.device, settings.batch_size, settings.seed
    forget_batches = mixed_batches([forget], cutter, size, seed)
    retain_batches = mixed_batches(retain, cutter, size, seed + 1) if retain else None

    def step_loss() -> Tensor:
        retain_batch = next(retain_batches).to(device) if retain_batches else None
        return loss.value(Step(trained, model, next(forget_batches).to(device), retain_batch))

    steps = descend(trained, loss.trained(trained), step_loss, settings.lr, settings.n_steps)
    if loss.negates:
        for _ in steps:
            pass
        yield from _subtracted(model, trained, wanted)
        return
    for step in steps:
        if step in wanted:
            yield Snapshot(step, clone_model(trained))


def descend(
    model: AnyHookedModel, names: Sequence[str], loss: Callable[[], Float[Tensor, ""]], lr: float, n_steps: int
) -> Iterator[int]:
    """Move the named parameters of a model down the gradient of a loss, in place; yields the number of steps made, from 0 on.

    Only these parameters get gradients, whatever else the loss depends on. Between steps none of them requires one.

    Raises:
        DivergedError: the loss or its gradient is no longer finite.
    """
    by_name = dict(model.named_parameters())
    parameters = [by_name[name] for name in names]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    yield 0
    for step in track(range(1, n_steps + 1), "finetuning", "step"):
        _set_gradients(parameters, loss)
        norm = nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        if not bool(norm.isfinite()):
            raise DivergedError(f"the gradient is not finite at step {step} with lr {lr:g}; give a smaller lr or fewer steps")
        optimizer.step()
        optimizer.zero_grad()
        yield step


def _set_gradients(parameters: Sequence[nn.Parameter], loss: Callable[[], Tensor]) -> None:
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss(), parameters, materialize_grads=True)
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone(memory_format=torch.contiguous_format)  # it may share memory with another


@torch.no_grad()
def _subtracted(model: AnyHookedModel, learned: AnyHookedModel, multiples: Sequence[int]) -> Iterator[Snapshot]:
    """`theta - c * (theta_learned - theta)` for each multiple c."""
    after = dict(learned.named_parameters())
    for multiple in multiples:
        forgetful = clone_model(learned)
        set_weights(forgetful, {n: p - multiple * (after[n] - p) for n, p in model.named_parameters()})
        yield Snapshot(multiple, forgetful)
