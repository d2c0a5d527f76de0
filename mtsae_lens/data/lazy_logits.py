"""Logits that are computed a chunk of positions at a time, so that `(batch, pos, d_vocab)` never stands in memory.

A model is run to its unembedding. What the unembedding reads, `d_model` numbers per position, is kept, and losses, divergences and likeliest
tokens are computed from it chunk by chunk. Where a gradient is needed, the logits of a chunk are computed again in the backward pass.

The memory beyond the model is that of one chunk: `CHUNK_BYTES` for the logits, and a few times as much for what is computed from them. It
does not depend on the vocabulary, unless a single position has more than `CHUNK_BYTES` of logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.precision import in_float32, log_probs_of
from mtsae_lens.upstream import finish_logits

CHUNK_BYTES = 2**25
"""Size of the logits that are computed at once, in float32."""

REMEMBERED_BYTES = 2**28
"""Size of the logits that are kept where several edits are compared with them; more are computed again for each edit."""

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}  # of the largest logit, between the model's own ending and ours
_TOLERANCE_HALF = 0.02
_compared: WeakSet[Any] = WeakSet()


@dataclass(frozen=True, eq=False)
class LazyLogits:
    """Logits of some positions, as what the unembedding reads there and how it turns that into logits.

    Args:
        states: what the unembedding reads; positions may be selected by indexing.
        head: the unembedding, with all that follows it, of rows `(n, d_model)` or `(batch, pos, d_model)`.
        d_vocab: logits per position.
    """

    states: Float[Tensor, "*n d_model"]
    head: Callable[[Tensor], Tensor]
    d_vocab: int

    @staticmethod
    def of(logits: Float[Tensor, "*n d_vocab"]) -> LazyLogits:
        """Wrap logits that are computed already."""
        return LazyLogits(logits, _as_they_are, logits.shape[-1])

    @property
    def rows_at_once(self) -> int:
        """Positions whose logits are computed together."""
        return rows_at_once(self.d_vocab)

    def __getitem__(self, index: Any) -> LazyLogits:
        return replace(self, states=self.states[index])

    def plus(self, bias: Float[Tensor, " d_vocab"]) -> LazyLogits:
        """Add a vector to the logits of every position, in float32."""

        def head(states: Tensor) -> Tensor:
            logits = in_float32(self.head(states))
            return logits + bias.to(logits)

        return replace(self, head=head)

    def as_log_probs(self) -> LazyLogits:
        """Return logits that are normalized: log-probabilities in at least float32."""
        return replace(self, head=lambda states: log_probs_of(self.head(states)))

    @torch.no_grad()
    def remembered(self) -> LazyLogits:
        """Compute logits of up to `REMEMBERED_BYTES` now, so that they are not computed at every use; leave others as they are.

        They are computed in chunks, because what the head computes on the way takes as much memory as its result.
        """
        lead = self.states.shape[:-1]
        if 4 * lead.numel() * self.d_vocab > REMEMBERED_BYTES:
            return self
        rows = self.states.flatten(0, -2).split(self.rows_at_once)
        first = self.head(rows[0])
        kept = first.new_empty(lead.numel(), self.d_vocab)
        for place, states in enumerate(rows):
            start = place * self.rows_at_once
            kept[start : start + len(states)] = self.head(states) if place else first
        return LazyLogits.of(kept.view(*lead, self.d_vocab))

    def whole(self) -> Float[Tensor, "*n d_vocab"]:
        """Compute all logits at once."""
        return self.head(self.states)

    def nll(self, targets: Int[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Compute the negative log-likelihood of one token at every position, in nats.

        Args:
            targets: the token at each position.
        """
        return in_chunks(lambda logits, target: token_nll(log_probs_of(logits), target), [self], targets)


def rows_at_once(d_vocab: int) -> int:
    """Return how many positions of this many logits make one chunk; at least one."""
    return max(1, CHUNK_BYTES // (4 * d_vocab))


def token_nll(log_probs: Float[Tensor, "*n d_vocab"], targets: Int[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Compute the negative log-likelihood of each token, in nats.

    Args:
        log_probs: log-probabilities, `(..., d_vocab)`.
        targets: token ids, `(...)`.
    """
    return -log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def kl_divergence(clean: Float[Tensor, "*row d_vocab"], edited: Float[Tensor, "*row d_vocab"]) -> Float[Tensor, "*row"]:
    """Compute `KL(clean || edited)` of next-token distributions; 0 if they are equal, without an upper bound.

    Args:
        clean: log-probabilities, `(..., d_vocab)`.
        edited: log-probabilities, `(..., d_vocab)`.

    Returns:
        One value per distribution, in nats. On retain text, lower is better.
    """
    return torch.linalg.vecdot(clean.exp(), clean - edited)


def in_chunks(reduce: Callable[..., Tensor], logits: Sequence[LazyLogits], *by_position: Tensor) -> Tensor:
    """Reduce the logits of one or several models on the same positions, chunk by chunk.

    Gradients flow to `states` and to the weights of the unembedding; each chunk is computed again in the backward pass.

    Args:
        reduce: turns the logits of each model at some positions, `(n, d_vocab)`, and the rows of `by_position` there into a result `(n, ...)`.
        logits: the models' logits, all of the same positions.
        by_position: further tensors with the same leading dimensions, such as targets.

    Returns:
        The results, with the leading dimensions of the positions.
    """
    lead = logits[0].states.shape[:-1]
    size = min(each.rows_at_once for each in logits)

    def step(*chunk: Tensor) -> Tensor:
        computed = {id(each): each.head(states) for each, states in zip(logits, chunk, strict=False)}
        return reduce(*(computed[id(each)] for each in logits), *chunk[len(logits) :])

    device = logits[0].states.device
    rows = [each.states.flatten(0, -2) for each in logits]
    rows += [values.to(device).flatten(0, len(lead) - 1) for values in by_position]
    recompute = torch.is_grad_enabled() and len(rows[0]) > size
    parts = [
        checkpoint(step, *chunk, use_reentrant=False, preserve_rng_state=False) if recompute else step(*chunk)
        for chunk in zip(*(values.split(size) for values in rows), strict=True)
    ]
    found = torch.cat(parts)
    return found.reshape(*lead, *found.shape[1:])


def lazy_logits(model: AnyHookedModel, inputs: Tensor, *, fwd_hooks: Sequence[Any] = (), **options: Any) -> LazyLogits:
    """Run a model to its unembedding.

    Hooks that stand on the model, and `fwd_hooks`, run as ever.

    Args:
        model: a `HookedTransformer` or a bridge.
        inputs: what the model takes: tokens, or with `start_at_layer` the residual stream.
        fwd_hooks: hooks for this run.
        options: options of the call, such as `prepend_bos` and `attention_mask`.

    Returns:
        The logits of every position. They are computed whole where a hook stands on the unembedding itself, and of a model whose logits are
        not what its configuration says of the unembedding and what follows it.
    """
    caught: list[Tensor] = []

    def keep_first_position(module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        caught.append(arguments[0])
        return (arguments[0][:, :1], *arguments[1:])

    def run() -> Tensor:
        if fwd_hooks:
            return model.run_with_hooks(inputs, fwd_hooks=list(fwd_hooks), return_type="logits", **options)
        return model(inputs, return_type="logits", **options)

    if _is_hooked(model.unembed, fwd_hooks):
        return LazyLogits.of(run())
    handle = model.unembed.register_forward_pre_hook(keep_first_position)
    try:
        first = run()
    finally:
        handle.remove()
    if len(caught) != 1 or caught[0].ndim != 3:
        return LazyLogits.of(run())
    lazy = LazyLogits(caught[0], lambda states: finish_logits(model, model.unembed(states.contiguous())), first.shape[-1])
    return lazy if _ends_alike(model, lazy, first) else LazyLogits.of(run())


def _is_hooked(unembed: Any, fwd_hooks: Sequence[Any]) -> bool:
    """Return whether a hook changes what the unembedding reads or gives."""
    standing = any(getattr(module, "fwd_hooks", ()) for module in unembed.modules())
    return standing or any(isinstance(name, str) and name.startswith("unembed.") for name, _ in fwd_hooks)


@contextmanager
def last_position_alone(model: AnyHookedModel) -> Iterator[None]:
    """Let a model give logits of the last position alone, which is all that is read of them where it generates text."""
    handle = model.unembed.register_forward_pre_hook(lambda module, arguments: (arguments[0][:, -1:], *arguments[1:]))
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def _ends_alike(model: AnyHookedModel, lazy: LazyLogits, first: Float[Tensor, "batch 1 d_vocab"]) -> bool:
    """Return whether a model's logits are what `finish_logits` makes of its unembedding; compared once for each model."""
    if model in _compared:
        return True
    difference = (in_float32(lazy[:, :1].whole()) - in_float32(first)).abs().max()
    alike = bool(difference <= _TOLERANCE.get(first.dtype, _TOLERANCE_HALF) * in_float32(first).abs().max())
    if alike:
        _compared.add(model)
    return alike


@dataclass(frozen=True, eq=False)
class LazyModel:
    """A model as a function from tokens to logits, which can also give them lazily."""

    lazy: Callable[[Int[Tensor, "batch pos"]], LazyLogits]

    def __call__(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
        """Compute all logits at once."""
        return self.lazy(tokens).whole()


Logits = Callable[[Int[Tensor, "batch pos"]], Float[Tensor, "batch pos d_vocab"]]
"""A model as a function from tokens `(batch, pos)` to logits `(batch, pos, d_vocab)`. Only a `LazyModel` never holds all logits at once."""


def lazily(model: Logits, tokens: Int[Tensor, "batch pos"]) -> LazyLogits:
    """Run a model on tokens; one that is not lazy gives its logits whole."""
    return model.lazy(tokens) if isinstance(model, LazyModel) else LazyLogits.of(model(tokens))


def _as_they_are(logits: Tensor) -> Tensor:
    return logits
