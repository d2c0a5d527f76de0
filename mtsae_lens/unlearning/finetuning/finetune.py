"""Finetune a model on forget and retain text, and take snapshots at chosen steps.

The optimizer is AdamW without weight decay; gradients are clipped to norm 1. For a loss that changes its gradients it is plain gradient
descent on gradients scaled to a root mean square of 1. The given model never changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.progress import track
from mtsae_lens.unlearning.finetuning.batches import mixed_batches
from mtsae_lens.unlearning.finetuning.clones import clone_model, clone_to_train, set_weights
from mtsae_lens.unlearning.finetuning.loss_interface import ChangesGradients, Step, UnlearningLoss

MAX_GRADIENT_NORM = 1.0


class DivergedError(ConfigError):
    """The loss or its gradient is not finite, because the learning rate is too high for this loss on this model."""


@dataclass(frozen=True)
class FinetuneSettings:
    """Learning rate, number of steps, and the snapshots to take.

    Raises:
        ConfigError: a value is out of range, or the snapshots are not in ascending order.
    """

    lr: float
    n_steps: int
    batch_size: int = 8
    """Contexts of forget text per step, and as many of retain text."""
    snapshots: tuple[int, ...] = ()
    """Steps after which a copy of the model is yielded, in ascending order; 0 is the model before training. Empty for the last step only.
    For a loss that negates its updates, these are the multiples of the sum of all `n_steps` updates that are subtracted."""
    seed: int = 0
    first_layer: int = 0
    """First layer to train. Above 0, the embedding and the layers before it keep their weights, which makes a step on a large model
    cheaper."""

    def __post_init__(self) -> None:
        if self.first_layer < 0:
            raise ConfigError(f"expected first_layer >= 0, got {self.first_layer}; 0 trains every layer")
        if not self.lr > 0 or self.n_steps < 1 or self.batch_size < 1:
            raise ConfigError(
                f"expected lr > 0, n_steps >= 1 and batch_size >= 1, got {self.lr}, {self.n_steps} and {self.batch_size}; change them"
            )
        if any(step < 0 for step in self.snapshots) or list(self.snapshots) != sorted(set(self.snapshots)):
            raise ConfigError(f"expected snapshots of at least 0 in ascending order, got {self.snapshots}; sort them")

    def snapshot_steps(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Return the snapshots as steps of this run.

        Args:
            default: the steps to return if no snapshots are set.

        Raises:
            ConfigError: a snapshot lies after the last step.
        """
        if max(self.snapshots, default=0) > self.n_steps:
            raise ConfigError(f"expected snapshots of at most n_steps={self.n_steps}, got {max(self.snapshots)}; raise n_steps")
        return self.snapshots or default


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A copy of the model after a step; for a loss that negates, the model minus `step` times the sum of the updates."""

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
    """Train a clone of a model, and yield copies of it as soon as they are ready. The same seed gives the same result.

    A model in half precision is trained and yielded in float32 (`clone_to_train`).

    Args:
        model: the model, which is not changed.
        loss: the loss to minimize.
        forget: the text to forget. Only counted tokens enter the loss; for questions, these are the answers.
        retain: texts to retain, in equal parts; ignored by a loss that does not use them.
        cutter: says which tokens are special.
        settings: learning rate, steps and snapshots.

    Yields:
        The snapshots, in order.

    Raises:
        ConfigError: a snapshot lies after the last step, or `first_layer` leaves nothing to train.
        DivergedError: the loss or its gradient is no longer finite.
        DataError: the loss needs retain text and got none, or no token of a text is counted.
    """
    wanted = (settings.snapshots or (1,)) if loss.negates else settings.snapshot_steps((settings.n_steps,))
    if loss.uses_retain and not retain:
        raise DataError(f"expected retain text for {type(loss).__name__}, got none; give at least one table of it")
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

    latest: list[Step] = []

    def step_loss() -> Tensor:
        retain_batch = next(retain_batches).to(device) if retain_batches else None
        latest[:] = [Step(trained, model, next(forget_batches).to(device), retain_batch)]
        return loss.value(latest[0])

    def change(gradients: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        assert isinstance(loss, ChangesGradients)
        return loss.change_gradients(latest[0], gradients)

    names = keep_later_layers(trained, loss.trained(trained), settings.first_layer)
    changes = change if isinstance(loss, ChangesGradients) else None
    steps = descend(trained, names, step_loss, settings.lr, settings.n_steps, changes)
    if loss.negates:
        for _ in steps:
            pass
        yield from _subtracted(model, trained, wanted)
        return
    for step in steps:
        if step in wanted:
            yield Snapshot(step, clone_model(trained))


def keep_later_layers(model: AnyHookedModel, names: Sequence[str], first_layer: int) -> tuple[str, ...]:
    """Leave out the parameters of the embedding and of the layers before `first_layer`.

    A language model then needs no gradients before that layer. An unembedding that shares its weights with the embedding is left out too.

    Args:
        model: a `HookedTransformer` or a bridge.
        names: names of its parameters.
        first_layer: the first layer to keep; 0 keeps everything.

    Returns:
        The names that are left, in order.

    Raises:
        ConfigError: the model has no such layer, or no parameter is left.
    """
    if first_layer == 0:
        return tuple(names)
    n_layers = model.cfg.n_layers
    if first_layer >= n_layers:
        raise ConfigError(f"expected first_layer from 0 to {n_layers - 1} for this model, got {first_layer}; lower it")
    before = [*model.blocks[:first_layer], *(getattr(model, name) for name in ("embed", "pos_embed") if hasattr(model, name))]
    frozen = {id(parameter) for part in before for parameter in part.parameters()}
    by_name = dict(model.named_parameters())
    kept = tuple(name for name in names if id(by_name[name]) not in frozen)
    if not kept:
        raise ConfigError(f"expected parameters to train from layer {first_layer} on, got none; lower first_layer")
    return kept


def descend(
    model: nn.Module,
    names: Sequence[str],
    loss: Callable[[], Float[Tensor, ""]],
    lr: float,
    n_steps: int,
    change: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None,
) -> Iterator[int]:
    """Minimize a loss over the named parameters of a model by gradient descent, in place.

    Only these parameters get gradients, whatever else the loss depends on. Between steps none of them requires a gradient.

    Args:
        model: the model, changed in place.
        names: names of the parameters to train.
        loss: computes the loss of one step.
        lr: learning rate.
        n_steps: number of steps.
        change: changes the gradients, by parameter name, before every update, which then follows them without AdamW (`ChangesGradients`).

    Yields:
        The number of steps done so far, from 0 on.

    Raises:
        DivergedError: the loss or its gradient is no longer finite.
    """
    by_name = dict(model.named_parameters())
    trained = {name: by_name[name] for name in names}
    parameters = list(trained.values())
    optimizer: torch.optim.Optimizer = (
        torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0) if change is None else torch.optim.SGD(parameters, lr=lr)
    )
    yield 0
    for step in track(range(1, n_steps + 1), "finetuning", "step"):
        _set_gradients(trained, loss, change)
        norm = nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM) if change is None else _scale_gradients(parameters)
        if not bool(norm.isfinite()):
            raise DivergedError(
                f"expected a finite gradient, got NaN or infinity at step {step} with lr={lr:g}; lower lr or n_steps"
            )
        optimizer.step()
        optimizer.zero_grad()
        yield step


def _set_gradients(
    trained: Mapping[str, nn.Parameter],
    loss: Callable[[], Tensor],
    change: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None,
) -> None:
    for parameter in trained.values():
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            found = torch.autograd.grad(loss(), list(trained.values()), materialize_grads=True)
            gradients: Mapping[str, Tensor] = dict(zip(trained, found, strict=True))
            if change is not None and all(
                bool(gradient.isfinite().all()) for gradient in found
            ):  # the caller refuses the others
                gradients = change(gradients)
    finally:
        for parameter in trained.values():
            parameter.requires_grad_(False)
    for name, parameter in trained.items():
        # cloned, because a gradient may share memory with another one
        parameter.grad = gradients[name].clone(memory_format=torch.contiguous_format)


def _scale_gradients(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Scale all gradients together to a root mean square of 1, and return the norm that they had. Gradients of zero stay zero: a loss that
    is saturated, as NPO is once the text is forgotten, has nothing left to follow.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    largest = torch.stack([gradient.abs().amax() for gradient in gradients]).amax()
    if not bool(largest > 0):  # also where it is not a number, which the caller refuses
        return largest
    for gradient in gradients:
        gradient.div_(largest)  # first, because squares of small gradients underflow
    norm = nn.utils.get_total_norm(gradients)
    n_entries = sum(gradient.numel() for gradient in gradients)
    for gradient in gradients:
        gradient.mul_(n_entries**0.5 / norm)
    return norm * largest


@torch.no_grad()
def _subtracted(model: AnyHookedModel, learned: AnyHookedModel, multiples: Sequence[int]) -> Iterator[Snapshot]:
    """Yield `theta - c * (theta_learned - theta)` for each multiple c."""
    after = dict(learned.named_parameters())
    for multiple in multiples:
        forgetful = clone_model(learned)
        set_weights(forgetful, {n: p - multiple * (after[n] - p) for n, p in model.named_parameters()})
        yield Snapshot(multiple, forgetful)
