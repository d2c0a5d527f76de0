"""Gates that accumulate the evidence of every position: a two-state filter, and a decayed mean.

    l_t = log sum_k exp(w_k . phi_t + c_k)          phi_t: the features at t, or the activations at the hook

With one detector, `l_t` is linear. With several, it is the log-likelihood ratio of a mixture: each detector may recognize another part of
the forget text, such as one of many people, where no single direction separates them from the people to keep.

`TwoStateGate` takes `l_t` for the evidence of one token, in log-likelihood units, and knows how fast the state may change.
`DecayedMeanGate` is the usual streaming probe: it averages `l_t` and knows neither.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtsae_lens.errors import ConfigError
from mtsae_lens.splice.gate_interface import ThresholdGate, check_threshold, check_width, count_of, gate_indices, register_gate

Source = Literal["features", "activations"]
"""What a gate reads: feature activations, or the activations at the hook that the SAE reads."""


@dataclass(frozen=True, repr=False)
class EvidenceGate(ThresholdGate):
    """Base of the gates that accumulate `l_t = log sum_k exp(w_k . phi_t + c_k)` along a context.

    A position whose input is all zeros (a special token, padding) is not a step: it has no evidence, and the state stays as it was.

    Args:
        reads: `"features"`, or `"activations"` at the hook.
        features: the feature of each weight; empty if the gate reads activations, because then there is a weight for each coordinate.
        weights: w, one row for each detector.
        bias: c, one number for each detector.
        threshold: score above which the gate is open.

    Raises:
        ConfigError: `features` are not indices, there is not one finite weight for each, or a number is out of range.
    """

    reads: Source
    features: Int[Tensor, " n"]
    weights: Float[Tensor, "detector d"]
    bias: Float[Tensor, " detector"]
    threshold: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", gate_indices(self.features))
        object.__setattr__(self, "weights", torch.as_tensor(self.weights).float())
        object.__setattr__(self, "bias", torch.as_tensor(self.bias).float())
        if self.reads not in get_args(Source):
            raise ConfigError(
                f"expected a gate that reads {' or '.join(get_args(Source))}, got {self.reads!r}; give one of them"
            )
        width = len(self.features) if self.reads == "features" else self.weights.shape[-1]
        fits = self.weights.ndim == 2 and self.weights.shape == (len(self.bias), width) and len(self.bias)
        if not fits or (self.reads == "activations" and len(self.features)):
            raise ConfigError(
                "expected a row of weights and a bias for each detector of a gate, with one weight for each feature (or no features and one "
                f"weight for each coordinate), got weights {tuple(self.weights.shape)}, {self.bias.numel()} biases and "
                f"{len(self.features)} features; change them"
            )
        check_threshold(self.threshold)
        if not bool(self.weights.isfinite().all() and self.bias.isfinite().all()):
            raise ConfigError("expected finite weights and biases of a gate, got NaN or infinity; give finite numbers")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._about}, threshold={self.threshold:.4g})"

    @property
    def _about(self) -> str:
        about = count_of(self.features) if self.reads == "features" else "activations"
        return about if len(self.bias) == 1 else f"{about}, {len(self.bias)} detectors"

    def observe(
        self, sae_in: Float[Tensor, "batch pos *d_in"], feature_acts: Float[Tensor, "batch pos d_sae"]
    ) -> Float[Tensor, "batch pos d"]:
        """Return what the gate reads.

        Args:
            sae_in: the SAE's input, zero at masked positions; of a transcoder, what is at the hook that it decodes.
            feature_acts: the feature activations.
        """
        return feature_acts if self.reads == "features" else sae_in.flatten(2)

    def score(self, observed: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch pos"]:
        """Compute the accumulated evidence at every position of whole contexts.

        Args:
            observed: what `observe` returned.
        """
        return self._accumulate(observed, None)[0]

    def open_from(
        self, observed: Float[Tensor, "batch pos d"], state: Tensor | None
    ) -> tuple[Bool[Tensor, "batch pos"], Tensor | None]:
        """Return True where the score exceeds the threshold.

        Args:
            observed: what `observe` returned, at consecutive positions.
            state: what the call for the positions before returned; None at the start of a context.
        """
        score, state = self._accumulate(observed, state)
        return score > self.threshold, state

    def steps(self, observed: Float[Tensor, "batch pos d"]) -> tuple[Float[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
        """Compute `l_t`, and where a position is a step.

        Args:
            observed: what `observe` returned.

        Raises:
            ConfigError: the SAE has another width than the gate.
        """
        is_step = (observed != 0).any(dim=-1)
        if self.reads == "features":
            check_width(self.features, observed)
            observed = observed[..., self.features.to(observed.device)]
        elif observed.shape[-1] != self.weights.shape[-1]:
            raise ConfigError(
                f"expected activations of width {self.weights.shape[-1]}, as the gate was fitted on, got {observed.shape[-1]}; give the "
                "gate's SAE"
            )
        return evidence_of(observed.float(), self.weights.to(observed.device), self.bias.to(observed.device)), is_step

    @abstractmethod
    def _accumulate(self, observed: Tensor, state: Tensor | None) -> tuple[Float[Tensor, "batch pos"], Tensor]:
        """Return the score at each position, and the state after the last one, whose first axis is the batch."""

    def check_fits(self, d_sae: int, d_in: int) -> None:
        """Check that the features exist, or that there is a weight for each coordinate of the activations.

        Args:
            d_sae: number of features of the SAE.
            d_in: width of its input.

        Raises:
            ConfigError: the gate belongs to another SAE.
        """
        super().check_fits(d_sae, d_in)
        if self.reads == "activations" and self.weights.shape[-1] != d_in:
            raise ConfigError(
                f"weights: expected {d_in} numbers in a row, one for each coordinate, got {self.weights.shape[-1]}"
            )


@register_gate("two_state")
@dataclass(frozen=True, repr=False)
class TwoStateGate(EvidenceGate):
    """A gate that filters a hidden state, "this is forget text", and is open where its log odds exceed a threshold.

        logit pi_t = logit(a + (1 - a - b) pi_{t-1}) + l_t,   pi before the context = a / (a + b)

    It is the forward filter of a hidden Markov model with two states (Rabiner 1989): `a` is the chance per token that forget text begins,
    and `b` that it ends. So evidence saturates, and old evidence is forgotten at a rate that depends on how certain it was.

    Args:
        opening: a.
        closing: b.

    Raises:
        ConfigError: see the base class; or `a` and `b` are not above 0 with a sum of at most 1.
    """

    opening: float
    closing: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.opening > 0 and self.closing > 0 and self.opening + self.closing <= 1):
            raise ConfigError(
                f"expected opening and closing rates above 0 with a sum of at most 1, got {self.opening} and {self.closing}; change them"
            )

    def _accumulate(self, observed: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        evidence, is_step = self.steps(observed)
        opening, closing = evidence.new_tensor(self.opening), evidence.new_tensor(self.closing)
        return filter_two_states(evidence, is_step, opening, closing, state)

    def describe(self) -> str:
        """Describe where the gate is open."""
        rates = f"{self._about}, opening rate {self.opening:.2g}, closing rate {self.closing:.2g}"
        return f"where a two-state filter ({rates}) has log odds above {self.threshold:.4g}"


@register_gate("decayed_mean")
@dataclass(frozen=True, repr=False)
class DecayedMeanGate(EvidenceGate):
    """A gate that is open where a decayed mean of `l_t` exceeds a threshold: the usual streaming probe.

        score_t = sum_{s<=t} decay^(t-s) l_s / sum_{s<=t} decay^(t-s)

    Args:
        decay: factor per token on earlier positions; at least 0 and less than 1.

    Raises:
        ConfigError: see the base class; or the decay is out of range.
    """

    decay: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.decay < 1:
            raise ConfigError(f"expected a decay of at least 0 and less than 1, got {self.decay}; change it")

    def _accumulate(self, observed: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        evidence, is_step = self.steps(observed)
        return decayed_mean(evidence, is_step, self.decay, state)

    def describe(self) -> str:
        """Describe where the gate is open."""
        return f"where the decayed mean of a probe ({self._about}, decay {self.decay:g}) exceeds {self.threshold:.4g}"


def evidence_of(
    phi: Float[Tensor, "batch pos d"], weights: Float[Tensor, "detector d"], bias: Float[Tensor, " detector"]
) -> Float[Tensor, "batch pos"]:
    """Compute `log sum_k exp(w_k . phi_t + c_k)`.

    Args:
        phi: what the detectors read.
        weights: w.
        bias: c.
    """
    each = phi @ weights.T + bias
    return each[..., 0] if each.shape[-1] == 1 else each.logsumexp(dim=-1)


def filter_two_states(
    evidence: Float[Tensor, "batch pos"],
    is_step: Bool[Tensor, "batch pos"],
    opening: Float[Tensor, ""],
    closing: Float[Tensor, ""],
    before: Float[Tensor, " batch"] | None = None,
) -> tuple[Float[Tensor, "batch pos"], Float[Tensor, " batch"]]:
    """Filter a two-state chain along a context; gradients flow to the evidence and to both rates.

    Args:
        evidence: `l_t`, the log-likelihood ratio of each position.
        is_step: False where a position is left out.
        opening: chance per step that the state begins.
        closing: chance per step that it ends.
        before: log odds before the first position; None for the stationary odds.

    Returns:
        Log odds at each position, and after the last one.
    """
    running = (opening.log() - closing.log()).expand(len(evidence)) if before is None else before
    log_odds = []
    for step, counts in zip(evidence.unbind(dim=1), is_step.unbind(dim=1), strict=True):
        predicted = opening + (1 - opening - closing) * torch.sigmoid(running)
        running = torch.where(counts, predicted.log() - (-predicted).log1p() + step, running)
        log_odds.append(running)
    return torch.stack(log_odds, dim=1), running


def decayed_mean(
    values: Float[Tensor, "batch pos"], is_step: Bool[Tensor, "batch pos"], decay: float, before: Tensor | None = None
) -> tuple[Float[Tensor, "batch pos"], Float[Tensor, "batch 2"]]:
    """Compute the decayed mean of the values up to each position.

    Args:
        values: the values.
        is_step: False where a position is left out.
        decay: factor per step on earlier values.
        before: decayed sum and decayed count before the first position, `(batch, 2)`; None for none.

    Returns:
        The means, 0 before the first step; and the decayed sum and count after the last position.
    """
    counts = torch.stack([torch.where(is_step, values, 0.0), is_step.to(values.dtype)], dim=-1)
    running = torch.zeros_like(counts[:, 0]) if before is None else before
    means = []
    for position in range(values.shape[1]):
        running = torch.where(is_step[:, position, None], decay * running + counts[:, position], running)
        means.append(running[:, 0] / running[:, 1].clamp(min=1e-9))
    return torch.stack(means, dim=1), running
