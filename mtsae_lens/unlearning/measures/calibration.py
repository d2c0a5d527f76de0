"""The loss that is left when an output bias may be refitted: a change that merely shifts logits is no forgetting.

A change that lowers the logits of a domain's words everywhere raises its loss, and one number for each vocabulary token, learned from a little
text, takes that back. So before the loss is read, those numbers are learned for the clean and for the changed model:

    b* = argmin_b  sum_t -log softmax(logits_t + b)[target_t] + |b - a|^2 / (2 prior_std^2)

on TUNE text of the corpus, and the loss is that of `softmax(logits + b*)` on TEST text. The prior keeps `b` near the anchor `a` for
tokens that the fitting text hardly has: 0 for the clean model, and for a changed one what restores the clean model's mean logits. With that
anchor a model whose logits are the clean ones plus any constant vector has exactly the clean model's calibrated loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import optimize
from torch import Tensor

from mtsae_lens.data.contexts import ContextCutter, TokenTable
from mtsae_lens.data.lazy_logits import LazyLogits, LazyModel, Logits, lazily
from mtsae_lens.data.precision import log_probs_of
from mtsae_lens.errors import DataError
from mtsae_lens.progress import advance, phase, track

PRIOR_STD = 0.5  # nats; of 0.3, 0.5, 0.7, 1 and 2 fitted on SELECT text of kjv and milton the least or nearly the least loss on TUNE text
MAX_TOKENS = 10_000  # predictions held at once, as float32 probabilities of the whole vocabulary: 2 GB at 50,000 tokens
_MAX_BYTES = 2**31
_MAX_ITERATIONS = 200


def max_tokens(d_vocab: int) -> int:
    """Return how many predictions a bias is fitted on, at most: `MAX_TOKENS`, or what 2 GB hold of a vocabulary above 53,000."""
    return max(1, min(MAX_TOKENS, _MAX_BYTES // (4 * d_vocab)))


@dataclass(frozen=True, eq=False)
class OutputBias:
    """What was added to the logits, and what that did on the text that it was fitted on."""

    bias: Float[Tensor, " d_vocab"]
    nll_before: float  # nats per token of the fitting text without the bias
    nll_after: float  # with it
    n_tokens: int  # predictions fitted on
    mean_logits: Float[Tensor, " d_vocab"]  # of the model without the bias, each prediction's relative to their mean


@dataclass(frozen=True, eq=False)
class CalibratedLoss:
    """Losses of the clean and of the changed model, each with its own output bias; fields as in `EditEffect`.

    Intervals: `delta_interval` on `nll_edited - nll_clean` and `n_tokens`, added up by document.
    """

    corpus: str
    documents: tuple[str, ...]  # of each piece: what of a context belongs to one document
    n_tokens: Float[Tensor, " piece"]
    nll_clean: Float[Tensor, " piece"]  # sums over counted predictions
    nll_edited: Float[Tensor, " piece"]
    clean_bias: OutputBias
    edited_bias: OutputBias

    @property
    def nll_delta(self) -> float:
        """Nats added per token that no output bias takes back; 0 for a mere shift of logits. On forget text higher is more forgetting."""
        return ((self.nll_edited - self.nll_clean).sum() / self.n_tokens.sum()).item()


def calibrated_loss(
    edited: Logits,
    clean: Logits,
    cutter: ContextCutter,
    fitting: TokenTable,
    table: TokenTable,
    *,
    prior_std: float = PRIOR_STD,
    max_tokens: int = MAX_TOKENS,
    batch_size: int = 16,
) -> CalibratedLoss:
    """Measure the calibrated losses of two models on a text (TEST) with biases fitted on another of the same corpus (TUNE).

    Raises:
        DataError: nothing is counted in one of the texts.
    """
    settings: dict[str, Any] = {"prior_std": prior_std, "max_tokens": max_tokens, "batch_size": batch_size}
    clean_bias = fit_output_bias(clean, cutter, fitting, **settings)
    edited_bias = fit_output_bias(edited, cutter, fitting, clean=clean_bias, **settings)
    n_tokens, nll_clean = _losses(with_bias(clean, clean_bias.bias), cutter, table, batch_size)
    _, nll_edited = _losses(with_bias(edited, edited_bias.bias), cutter, table, batch_size)
    return CalibratedLoss(table.corpus, table.pieces.documents, n_tokens, nll_clean, nll_edited, clean_bias, edited_bias)


@torch.no_grad()
def fit_output_bias(
    model: Logits,
    cutter: ContextCutter,
    table: TokenTable,
    *,
    clean: OutputBias | None = None,
    prior_std: float = PRIOR_STD,
    max_tokens: int = MAX_TOKENS,
    batch_size: int = 16,
) -> OutputBias:
    """Fit the output bias that suits a text best under the prior; deterministic (L-BFGS on a convex function).

    Args:
        model: gets the bias.
        cutter: says which predictions count.
        table: the text to fit.
        clean: the clean model's fit to the same text, whose mean logits anchor the prior; None: the anchor is 0.
        prior_std: in nats; the fewer the fitting tokens, the more it decides.
        max_tokens: predictions used at most, the first of the table; memory is `max_tokens x d_vocab` float32.
        batch_size: contexts in a forward pass.

    Raises:
        DataError: nothing is counted in the text.
    """
    chunks, targets, before = [], [], []
    for logits, target in _counted_logits(model, cutter, table, max_tokens, batch_size):
        before.append(_picked(log_probs_of(logits), target))
        chunks.append(logits.float().cpu())
        targets.append(target.cpu())
    n_tokens = sum(map(len, chunks))
    mean_logits = torch.stack([(c - c.mean(dim=-1, keepdim=True)).double().sum(dim=0) for c in chunks]).sum(dim=0) / n_tokens
    anchor = torch.zeros_like(mean_logits) if clean is None else clean.mean_logits - mean_logits
    log_likelihood = 0.0
    for place, target in enumerate(targets):
        anchored = (chunks[place] + anchor.float()).log_softmax(dim=-1)
        log_likelihood += _picked(anchored, target).sum().item()
        chunks[place] = anchored.exp()
    delta, nll = _minimize(chunks, torch.cat(targets), log_likelihood, prior_std)
    return OutputBias(anchor + delta, -torch.cat(before).mean().item(), nll / n_tokens, n_tokens, mean_logits)


def with_bias(model: Logits, bias: Float[Tensor, " d_vocab"]) -> Logits:
    """Return the same model with a vector added to its logits."""

    def lazy(tokens: Int[Tensor, "batch pos"]) -> LazyLogits:
        return lazily(model, tokens).plus(bias)

    return LazyModel(lazy)


def _minimize(
    probabilities: list[Tensor], targets: Tensor, log_likelihood: float, prior_std: float
) -> tuple[Float[Tensor, " d_vocab"], float]:
    """Return the bias beyond the anchor, and the summed loss with it.

    With the probabilities `p_t` at the anchor, `log softmax(logits_t + a + d)[v] = log p_t[v] + d[v] - log <p_t, e^d>`: the function and its
    gradient are two products with a matrix, and no exponential of it is taken twice.
    """
    counts = torch.bincount(targets, minlength=probabilities[0].shape[1]).double()

    def nll_and_gradient(delta: Tensor) -> tuple[float, Tensor]:
        weights = delta.exp()
        nll, expected = -log_likelihood - (counts @ delta).item(), torch.zeros_like(delta)
        for chunk in probabilities:
            mass = (chunk @ weights.float()).double()
            nll += mass.log().sum().item()
            expected += weights * (chunk.T @ (1 / mass).float()).double()
        return nll, expected - counts

    def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
        delta = torch.from_numpy(values)
        nll, gradient = nll_and_gradient(delta)
        prior = (delta @ delta).item() / (2 * prior_std**2)
        return (nll + prior) / len(targets), ((gradient + delta / prior_std**2) / len(targets)).numpy()

    start = np.zeros(len(counts))
    options = {"maxiter": _MAX_ITERATIONS, "ftol": 1e-9, "gtol": 1e-7}
    with phase("refitting the output bias", "step", _MAX_ITERATIONS):
        found = optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options, callback=lambda _: advance())
    delta = torch.from_numpy(found.x)
    return delta, nll_and_gradient(delta)[0]


def _picked(log_probs: Float[Tensor, "token d_vocab"], targets: Int[Tensor, " token"]) -> Float[Tensor, " token"]:
    return log_probs.gather(-1, targets[:, None]).squeeze(-1).cpu().double()


def _counted_logits(
    model: Logits, cutter: ContextCutter, table: TokenTable, max_tokens: int, batch_size: int
) -> Iterator[tuple[Float[Tensor, "token d_vocab"], Int[Tensor, " token"]]]:
    """Yield logits and targets of counted predictions, chunk by chunk, up to `max_tokens` of them."""
    left = max_tokens
    for tokens, counted, _ in track(table.batches(cutter, batch_size), f"reading {table.corpus} for the output bias", "batch"):
        if left > 0 and bool(counted.any()):
            logits = lazily(model, tokens)
            kept = logits[:, :-1][counted.to(logits.states.device)][:left]
            targets = tokens[:, 1:][counted][:left].to(kept.states.device)
            left -= len(targets)
            for states, target in zip(kept.states.split(kept.rows_at_once), targets.split(kept.rows_at_once), strict=True):
                yield kept.head(states), target
    if left == max_tokens:
        raise DataError(f"{table.corpus}: no token in it whose prediction counts; give text to fit the output bias on")


@torch.no_grad()
def _losses(model: Logits, cutter: ContextCutter, table: TokenTable, batch_size: int) -> tuple[Tensor, Tensor]:
    """Return the number of counted tokens and their summed loss, by piece."""
    losses_of = []
    for tokens, counted, _ in track(
        table.batches(cutter, batch_size), f"measuring {table.corpus} with the output bias", "batch"
    ):
        nll = lazily(model, tokens)[:, :-1].nll(tokens[:, 1:]).cpu()
        losses_of.append(nll.double() * counted)
    n_tokens, losses = table.pieces.sum(table.counted(cutter).double()), table.pieces.sum(torch.cat(losses_of))
    if not n_tokens.any():
        raise DataError(f"{table.corpus}: no token in it whose prediction counts")
    return n_tokens, losses
