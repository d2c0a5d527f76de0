"""Fit the gates that accumulate evidence on SELECT text: a two-state filter, and a probe with a decayed mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, pad

from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.progress import track
from mtsae_lens.splice.evidence_gates import DecayedMeanGate, Source, TwoStateGate, decayed_mean, evidence_of, filter_two_states
from mtsae_lens.unlearning.gating import logistic_regression
from mtsae_lens.unlearning.observed import MAX_FEATURES, SMALLEST_STD, Observed, measure_gap

WINDOW = 4
TOP_WINDOWS = 4
VARIANCE_WEIGHT = 0.1
_N_FORGET, _N_RETAIN = 64, 128  # contexts per step
N_STEPS = 800  # detectors of single people are found only after about 400 steps
_LEARNING_RATE = 0.02

Loss = Literal["windows", "positions"]


def window_scores(
    log_odds: Float[Tensor, "context pos"], is_step: Bool[Tensor, "context pos"], width: int = WINDOW, n_top: int = TOP_WINDOWS
) -> tuple[Float[Tensor, " context"], Float[Tensor, " context"]]:
    """Compute the mean and the variance of the highest window means of each context (SC-TopK, arXiv 2604.14865).

    Args:
        log_odds: log odds at each position.
        is_step: positions that count; only windows full of them are used, or the whole context if there is none.
        width: positions in a window.
        n_top: number of windows to use.

    Returns:
        Mean and variance over the windows used.
    """
    width = min(width, log_odds.shape[1])
    sums = pad((log_odds * is_step).cumsum(dim=1), (1, 0))
    counts = pad(is_step.float().cumsum(dim=1), (1, 0))
    full = counts[:, width:] - counts[:, :-width] == width
    means = ((sums[:, width:] - sums[:, :-width]) / width).masked_fill(~full, -torch.inf)
    whole = (sums[:, -1] / counts[:, -1].clamp(min=1)).unsqueeze(1)
    means = torch.cat([means, whole.masked_fill(full.any(dim=1, keepdim=True), -torch.inf)], dim=1)
    top = means.topk(min(n_top, means.shape[1]), dim=1).values
    used = top.isfinite()
    top = torch.where(used, top, 0.0)
    mean = top.sum(dim=1) / used.sum(dim=1)
    variance = ((top - mean.unsqueeze(1)).square() * used).sum(dim=1) / used.sum(dim=1)
    return mean, variance


def evidence_loss(log_odds: Tensor, observed: Observed, label: float, loss: Loss) -> Float[Tensor, ""]:
    """Compute the loss of some contexts of one corpus.

        windows      BCE(mean of the highest windows, y) + VARIANCE_WEIGHT (1 - y) variance of these windows
        positions    mean of BCE(log odds, y) over positions

    Questions are judged at one position, so both are the same there.

    Args:
        log_odds: the filter's log odds.
        observed: the contexts.
        label: 1 for forget text, 0 for text to keep.
        loss: `windows` or `positions`.
    """
    variance: Tensor | float = 0.0
    if observed.at is not None:
        judged = log_odds.gather(1, observed.at.unsqueeze(1)).squeeze(1)
    elif loss == "positions":
        judged = log_odds[observed.is_step]
    else:
        judged, each = window_scores(log_odds, observed.is_step)
        variance = VARIANCE_WEIGHT * (1 - label) * each.mean()
    return binary_cross_entropy_with_logits(judged, torch.full_like(judged, label)) + variance


@dataclass(frozen=True, eq=False)
class _Scale:
    """The chosen columns and their mean and spread on text to keep. Weights are fitted on standardized columns."""

    columns: Int[Tensor, " n"]
    features: Int[Tensor, " n"]  # the feature of each of these columns, if they are features
    mean: Float[Tensor, " n"]
    std: Float[Tensor, " n"]

    def standardize(self, observed: Observed) -> Observed:
        rows = (observed.rows[..., self.columns] - self.mean) / self.std
        return replace(observed, rows=rows.masked_fill(~observed.is_step.unsqueeze(-1), 0.0))

    def unfold(self, reads: Source, weights: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the features of a gate, and weights and biases for the columns as they are."""
        features = self.features.cpu() if reads == "features" else torch.arange(0)
        weights = weights / self.std
        return features, weights.cpu(), (bias - weights @ self.mean).cpu()


def _scale_of(forget: Observed, retain: Sequence[Observed], reads: Source) -> _Scale:
    """Choose columns: all coordinates of activations, or the features whose mean differs most between forget and retain text."""
    if not retain:
        raise DataError("expected retain text for the gate to stay closed on, got none; give a retain corpus")
    steps = torch.cat([observed.rows[observed.is_step] for observed in retain])
    mean, std = steps.mean(dim=0), steps.std(dim=0).clamp(min=SMALLEST_STD)
    columns = torch.arange(len(mean), device=mean.device)
    if reads == "features":
        ours = forget.rows[forget.is_step]
        gap = measure_gap((ours.mean(dim=0), ours.var(dim=0)), (mean, std.square()))
        used = torch.topk(gap, min(MAX_FEATURES, len(mean)))
        columns = used.indices[used.values > 0].sort().values
    features = columns if forget.features is None else forget.features[columns]
    return _Scale(columns, features, mean[columns], std[columns])


def fit_two_state(
    forget: Observed,
    retain: Sequence[Observed],
    reads: Source,
    *,
    seed: int,
    n_detectors: int = 1,
    loss: Loss = "windows",
    penalty: float = 1e-2,
    n_steps: int = N_STEPS,
) -> TwoStateGate:
    """Fit detectors, opening rate and closing rate of a `TwoStateGate` by Adam on the loss of `evidence_loss`.

    Forget text and retain text have equal weight, and so has each retain corpus.

    Args:
        forget: the text to open on.
        retain: the texts to stay closed on.
        reads: what `observed.rows` are.
        seed: seed of the batches, and of the first detectors.
        n_detectors: number of detectors.
        loss: `windows` or `positions`.
        penalty: weight decay.
        n_steps: number of updates.

    Returns:
        The gate, with threshold 0: both kinds of text are equally likely.

    Raises:
        ConfigError: there is not at least one detector.
        DataError: there is no retain text.
    """
    if n_detectors < 1:
        raise ConfigError(f"expected at least one detector, got {n_detectors}; give such as 1")
    scale = _scale_of(forget, retain, reads)
    longest = max(observed.rows.shape[1] for observed in (forget, *retain))
    corpora = [scale.standardize(observed).padded(longest) for observed in (forget, *retain)]
    generator = torch.Generator().manual_seed(seed)
    weights, bias, rates = _start_detectors(n_detectors, scale, generator)
    optimizer = torch.optim.AdamW(
        [{"params": [weights], "weight_decay": penalty}, {"params": [bias, rates], "weight_decay": 0.0}], lr=_LEARNING_RATE
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    n_each = [_N_FORGET] + [max(1, _N_RETAIN // len(retain))] * len(retain)
    for _ in track(range(n_steps), "fitting the gate", "step"):
        opening, closing = (0.5 * torch.sigmoid(rates)).unbind()
        batch = [_draw(observed, n, generator) for observed, n in zip(corpora, n_each, strict=True)]
        evidence = evidence_of(torch.cat([drawn.rows for drawn in batch]), weights, bias)
        log_odds, _ = filter_two_states(evidence, torch.cat([drawn.is_step for drawn in batch]), opening, closing)
        total = torch.zeros((), device=weights.device)
        for (label, share), drawn, odds in zip(_balance(len(retain)), batch, log_odds.split(n_each), strict=True):
            total = total + share * evidence_loss(odds, drawn, label, loss)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        schedule.step()
    opening, closing = (0.5 * torch.sigmoid(rates.detach())).tolist()
    return TwoStateGate(reads, *scale.unfold(reads, weights.detach(), bias.detach()), 0.0, opening, closing)


def _balance(n_retain: int) -> list[tuple[float, float]]:
    """Return the label and the weight of each corpus: forget text weighs as much as all retain text, and retain corpora weigh the same."""
    return [(1.0, 0.5)] + [(0.0, 0.5 / n_retain)] * n_retain


def _start_detectors(n_detectors: int, scale: _Scale, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weights, biases and rates with which the fit starts; several detectors start apart from each other, one starts at zero."""
    width = len(scale.columns)
    spread = 0.3 / max(width, 1) ** 0.5 if n_detectors > 1 else 0.0
    weights = (spread * torch.randn(n_detectors, width, generator=generator)).to(scale.mean).requires_grad_()
    bias = torch.full((n_detectors,), -float(n_detectors > 1)).to(scale.mean).requires_grad_()
    return weights, bias, torch.tensor([-3.0, -3.0]).to(scale.mean).requires_grad_()


def _draw(observed: Observed, n: int, generator: torch.Generator) -> Observed:
    rows = torch.randint(len(observed), (n,), generator=generator).to(observed.rows.device)
    return Observed(observed.rows[rows], observed.is_step[rows], None if observed.at is None else observed.at[rows])


def fit_decayed_mean(
    forget: Observed, retain: Sequence[Observed], reads: Source, *, seed: int, decay: float = 0.97, penalty: float = 1e-3
) -> DecayedMeanGate:
    """Fit the probe of a `DecayedMeanGate` by logistic regression on its own decayed means.

    Forget text and retain text have equal weight, and so has each retain corpus. Text is judged at an eighth of its positions.

    Args:
        forget: the text to open on.
        retain: the texts to stay closed on.
        reads: what `observed.rows` are.
        seed: seed of the positions.
        decay: factor per token on earlier positions.
        penalty: weight of the squared weights in the fit.

    Returns:
        The gate, with threshold 0.

    Raises:
        DataError: there is no retain text.
    """
    scale = _scale_of(forget, retain, reads)
    generator = torch.Generator().manual_seed(seed)
    rows, labels, weight = [], [], []
    for (label, share), observed in zip(_balance(len(retain)), (forget, *retain), strict=True):
        found = _means_where_judged(scale.standardize(observed), decay, generator)
        rows.append(found)
        labels.append(torch.full((len(found),), label))
        weight.append(torch.full((len(found),), share / len(found)))
    weights, bias = logistic_regression(torch.cat(rows), torch.cat(labels), torch.cat(weight), penalty)
    return DecayedMeanGate(reads, *scale.unfold(reads, weights.unsqueeze(0), bias.unsqueeze(0)), 0.0, decay)


def _means_where_judged(observed: Observed, decay: float, generator: torch.Generator) -> Float[Tensor, "n d"]:
    n, length, d = observed.rows.shape
    by_column = observed.rows.transpose(1, 2).reshape(n * d, length)
    means = decayed_mean(by_column, observed.is_step.repeat_interleave(d, dim=0), decay)[0].view(n, d, length).transpose(1, 2)
    if observed.at is not None:
        return means[torch.arange(n, device=means.device), observed.at]
    judged = (torch.rand(n, length, generator=generator) < 1 / 8).to(means.device) & observed.is_step
    return means[judged if bool(judged.any()) else observed.is_step]
