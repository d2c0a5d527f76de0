"""Fit a causal gate on SELECT text that opens on the forget text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.errors import DataError
from mtsae_lens.progress import advance, phase, track
from mtsae_lens.splice.gate_interface import Gate, ThresholdGate
from mtsae_lens.splice.gates import RunningEvidenceGate
from mtsae_lens.splice.hooked_lm import HookedLM

DECAY = 0.97  # evidence halves in 23 tokens: long enough for a sentence, short enough to drop the preceding text
PENALTY = 1e-3  # on the squared weights; with 1e-2 and 5e-2 the gate separated people slightly worse on TUNE questions
SAMPLES_PER_CONTEXT = 16
MAX_FEATURES = 4_096  # the features of a wide SAE that fire most often; bounds the memory of the fit
_MAX_ITERATIONS = 100
MAX_QUANTILE = 10_000_000  # torch.quantile takes 16 million values at most


def fit_gate(
    lm: HookedLM,
    forget: TokenTable,
    retain: Sequence[TokenTable],
    *,
    seed: int,
    decay: float = DECAY,
    penalty: float = PENALTY,
) -> RunningEvidenceGate:
    """Fit the weights of a `RunningEvidenceGate` by logistic regression on SELECT text.

        P(forget at t) = sigmoid(b + sum_i w_i * sum_{s<=t} decay^(t-s) [feature i fires at s])

    It is fitted at `SAMPLES_PER_CONTEXT` positions per context (for questions: where the answer begins). Forget text and retain text
    have equal weight, and so has each retain corpus. If features were independent, the weights would be log ratios of firing rates.

    Args:
        lm: the model with its SAE.
        forget: the text to open on.
        retain: the texts to stay closed on.
        seed: seed of the sampled positions.
        decay: factor on the evidence per position.
        penalty: weight of the squared weights in the fit.

    Returns:
        The gate, with threshold 0 on the log odds, where both kinds of text are equally likely.

    Raises:
        DataError: there is no retain text.
    """
    if not retain:
        raise DataError("expected retain text for the gate to stay closed on, got none; give a retain corpus")
    generator = torch.Generator().manual_seed(seed)
    tables = track((forget, *retain), "reading for the gate", "text")
    counts = [_decayed_counts(lm, table, decay, generator) for table in tables]
    common = torch.topk(sum(c.sum(dim=0) for c in counts), min(MAX_FEATURES, counts[0].shape[1])).indices  # type: ignore[arg-type]
    rows = torch.cat([c[:, common] for c in counts])
    weight = torch.cat([torch.full((len(c),), share / len(c)) for c, share in zip(counts, _shares(len(retain)), strict=True)])
    is_forget = torch.arange(len(rows)) < len(counts[0])
    weights, bias = logistic_regression(rows, is_forget.float(), weight, penalty)
    kept = weights.abs() > 1e-4 * weights.abs().max()
    return RunningEvidenceGate(common[kept].cpu(), weights[kept].cpu(), decay, threshold=-float(bias))


def _shares(n_retain: int) -> list[float]:
    return [0.5] + [0.5 / n_retain] * n_retain


def _decayed_counts(lm: HookedLM, table: TokenTable, decay: float, generator: torch.Generator) -> Float[Tensor, "n d_sae"]:
    """Return the decayed firing counts of every feature at sampled positions."""
    return torch.cat([_counts_of_batch(lm, tokens, at, decay) for tokens, at in sampled(lm, table, generator)])


def sampled(lm: HookedLM, table: TokenTable, generator: torch.Generator) -> Iterator[tuple[Tensor, Bool[Tensor, "batch pos"]]]:
    """Yield the contexts of a corpus in batches, with the positions that a gate is fitted or calibrated at.

    Args:
        lm: the model with its SAE.
        table: the contexts.
        generator: draws positions of text; of a question, the position where the answer begins is used.
    """
    for tokens, counted, _ in track(lm.counted_batches(table), f"reading {table.corpus}", "batch"):
        if table.answers is None:
            chance = SAMPLES_PER_CONTEXT / tokens.shape[1]
            at = (torch.rand(tokens.shape, generator=generator) < chance).to(tokens.device) & ~lm.masked(tokens)
        else:
            first = (counted.cumsum(dim=-1) == 1) & counted
            at = torch.cat([first, torch.zeros_like(first[:, :1])], dim=1)
        yield tokens, at


def _counts_of_batch(lm: HookedLM, tokens: Tensor, at: Bool[Tensor, "batch pos"], decay: float) -> Float[Tensor, "n d_sae"]:
    fires = (lm.feature_acts(tokens) > 0).float()
    running = torch.zeros_like(fires[:, 0])
    rows = []
    for position in range(fires.shape[1]):
        running = decay * running + fires[:, position]
        rows.append(running[at[:, position]])
    return torch.cat(rows)


def logistic_regression(
    rows: Float[Tensor, "n feature"], labels: Float[Tensor, " n"], weight: Float[Tensor, " n"], penalty: float
) -> tuple[Float[Tensor, " feature"], Float[Tensor, ""]]:
    """Fit a logistic regression with weighted rows.

    Args:
        rows: inputs.
        labels: 1 or 0.
        weight: weight of each row.
        penalty: weight of the squared weights.

    Returns:
        Weights and bias.
    """
    weights = torch.zeros(rows.shape[1], requires_grad=True, device=rows.device)
    bias = torch.zeros((), requires_grad=True, device=rows.device)
    labels, weight = labels.to(rows.device), weight.to(rows.device)
    options: dict[str, Any] = {
        "max_iter": _MAX_ITERATIONS,
        "max_eval": _MAX_ITERATIONS * 5 // 4,
        "line_search_fn": "strong_wolfe",
    }
    optimizer = torch.optim.LBFGS([weights, bias], **options)

    def loss() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            each = torch.nn.functional.binary_cross_entropy_with_logits(rows @ weights + bias, labels, reduction="none")
            total = (each * weight).sum() + penalty / 2 * weights.square().sum()
            total.backward()
        advance()
        return total

    with phase("fitting the gate", "step", options["max_eval"]):
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weights.detach(), bias.detach()


GateT = TypeVar("GateT", bound=ThresholdGate)


def thresholds_at(
    lm: HookedLM, gate: GateT, retain: Sequence[TokenTable], false_positive_rates: Sequence[float]
) -> list[GateT]:
    """Set the threshold of a gate such that it is open on given shares of retain positions, in the corpus on which it opens most.

    It is open on fewer where that would need a threshold below the gate's `lowest_threshold`.

    For questions, only the position where the answer begins is used. The text should not be the one that the gate was fitted on.

    Args:
        lm: the model with its SAE.
        gate: the gate.
        retain: the texts to stay closed on.
        false_positive_rates: shares of positions, between 0 and 1.

    Returns:
        One gate per rate.
    """
    scores = [scores_to_keep(lm, gate, table) for table in track(retain, "setting the gate", "text")]
    highest = [max(torch.quantile(s[:MAX_QUANTILE], 1 - rate).item() for s in scores) for rate in false_positive_rates]
    return [gate.with_threshold(max(threshold, gate.lowest_threshold)) for threshold in highest]


def scores_to_keep(lm: HookedLM, gate: Gate, table: TokenTable) -> Float[Tensor, " n"]:
    """Return a gate's scores at the unmasked positions of a text, or where the answers of questions begin.

    Args:
        lm: the model with its SAE.
        gate: the gate.
        table: the text or questions.
    """
    generator = torch.Generator().manual_seed(0)
    every = [
        gate.score(observe(lm, gate, tokens))[~lm.masked(tokens) if table.answers is None else at]
        for tokens, at in sampled(lm, table, generator)
    ]
    return torch.cat(every)


def observe(lm: HookedLM, gate: Gate, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d"]:
    """Compute what a gate reads in contexts of tokens.

    Args:
        lm: the model with its SAE.
        gate: the gate.
        tokens: the contexts.
    """
    h = lm.activations(tokens)
    return gate.observe(lm.target(tokens, h), lm.feature_acts(tokens, h))
