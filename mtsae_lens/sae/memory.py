"""Memory in the decoder: an MTSAE that predicts a position from its own past reconstructions, and codes only what is new.

With r_t = h'_t - b_dec the reconstruction about the mean:

    p_t = [r_{t-1}; r_{t-2}; ...; m^1_t; m^2_t; ...] @ W_memory_in @ W_memory_out     lags and running averages of the past
    m^j_t = b_j m^j_{t-1} + (1 - b_j) r_{t-1}                                          one average for each decay b_j
    e_t = act(W_enc' (x_t - p_t) + b_enc)                                              the features code the difference
    r_t = p_t + e_t @ W_dec                                                            `decode` repeats it from the features alone

A pointwise decoder must spend features on what the past already said. This one does not, and still nothing enters but features: the past is the
SAE's own output, so L0 counts all that is known (closed loop, as in predictive coding). A position without an active feature, such as a wall,
has r_t = 0, and ends the past: later positions read nothing from before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtsae_lens.errors import ConfigError, DataError, ModelError

_FEATURES_AT_ONCE = 512  # a response has as many rows as positions


@dataclass(eq=False)
class Past:
    """What is remembered at a position: the last reconstructions, newest first, and the running averages.

    All of them are about the mean, and zero where nothing is remembered.
    """

    lags: Sequence[int]
    decays: Sequence[float]
    recent: list[Float[Tensor, "*batch d_in"]] = field(default_factory=list)
    averages: list[Float[Tensor, "*batch d_in"]] = field(default_factory=list)

    @classmethod
    def empty(cls, lags: Sequence[int], decays: Sequence[float], like: Float[Tensor, "*batch d_in"]) -> Past:
        """Begin with nothing remembered.

        Args:
            lags: how many positions back the prediction reads.
            decays: the share that each running average keeps at every position.
            like: a tensor of the shape `(..., d_in)`.
        """
        zero = torch.zeros_like(like)
        return cls(lags, decays, [zero] * max(lags, default=0), [zero] * len(decays))

    @classmethod
    def of(cls, sae: Any, like: Float[Tensor, "*batch d_in"]) -> Past:
        """Begin with nothing remembered, as the configuration of an SAE with memory says.

        Args:
            sae: the SAE.
            like: a tensor of the shape `(..., d_in)`.
        """
        return cls.empty(sae.cfg.memory_lags, sae.cfg.memory_decays, like)

    def read(self) -> Float[Tensor, "*batch read_d_in"]:
        """Return what the prediction reads, `(..., (n_lags + n_decays) * d_in)`."""
        return torch.cat([*(self.recent[lag - 1] for lag in self.lags), *self.averages], dim=-1)

    def add(self, reconstruction: Float[Tensor, "*batch d_in"], active: Bool[Tensor, "*batch"]) -> None:
        """Remember the reconstruction of a position; where it has no active feature, forget everything."""
        kept = active.unsqueeze(-1)
        self.recent = [r * kept for r in (reconstruction, *self.recent[:-1])] if self.recent else []
        self.averages = [
            (b * average + (1 - b) * reconstruction) * kept for b, average in zip(self.decays, self.averages, strict=True)
        ]

    def select(self, kept: Bool[Tensor, " batch"]) -> Past:
        """Return what is remembered of some contexts of the batch.

        Args:
            kept: True for these contexts.
        """
        return replace(self, recent=[r[kept] for r in self.recent], averages=[average[kept] for average in self.averages])


def read_past(
    r: Float[Tensor, "batch pos d_in"], active: Bool[Tensor, "batch pos"], lags: Sequence[int], decays: Sequence[float]
) -> Float[Tensor, "batch pos read_d_in"]:
    """Return what the prediction reads at every position of known reconstructions; the same as `Past` one position after the other.

    Args:
        r: reconstructions about the mean.
        active: where a feature is active.
        lags: as in the configuration.
        decays: as in the configuration.

    Returns:
        `(batch, pos, (n_lags + n_decays) * d_in)`.
    """
    r = r * active.unsqueeze(-1)
    ended = (~active).long().cumsum(dim=1)
    reads = []
    for lag in lags:
        read = torch.zeros_like(r)
        if lag < r.shape[1]:  # the past ends at a position without features, not at the reading position itself
            same = ended[:, lag - 1 : -1] == ended[:, :-lag]
            read[:, lag:] = r[:, :-lag] * same.unsqueeze(-1)
        reads.append(read)
    for b in decays:
        average, averages = torch.zeros_like(r[:, 0]), []
        for t in range(r.shape[1]):
            averages.append(average)
            average = (b * average + (1 - b) * r[:, t]) * active[:, t].unsqueeze(-1)
        reads.append(torch.stack(averages, dim=1))
    return torch.cat(reads, dim=-1)


def gather_past(
    h: Float[Tensor, "batch pos d_in"], walls: Bool[Tensor, "batch pos"], lags: Sequence[int], decays: Sequence[float]
) -> Callable[[Int[Tensor, " row"]], Float[Tensor, "row width"]]:
    """Make a function that returns, for positions of these contexts, one row each for training with memory.

    A row holds the activations of the position, what `read_past` gives of the activations before it, the weight of each of these reads (1
    where a lag is within reach, `1 - b^n` for the average of n positions), and a 1, by which a later scaling of the row is known.

    Args:
        h: contexts, zero at walls.
        walls: the positions that are walls.
        lags: as in the configuration.
        decays: as in the configuration.

    Returns:
        A function from flat positions, `context * n_positions + position`, to rows of `(1 + n_reads) * d_in + n_reads + 1` numbers.
    """
    kept = ~walls
    averages = read_past(h, kept, (), decays).flatten(0, 1) if decays else None
    weights = read_past(torch.ones_like(h[..., :1]), kept, lags, decays).flatten(0, 1)
    flat = h.flatten(0, 1)

    def gather(rows: Int[Tensor, " row"]) -> Float[Tensor, "row width"]:
        own = weights[rows]
        lagged = [flat[(rows - lag).clamp(min=0)] * own[:, [place]] for place, lag in enumerate(lags)]
        averaged = [averages[rows]] if averages is not None else []
        return torch.cat([flat[rows], *lagged, *averaged, own, torch.ones_like(own[:, :1])], dim=-1)

    return gather


def run_encoder(
    sae: Any,
    x: Float[Tensor, "batch pos d_in"],
    walls: Bool[Tensor, "batch pos"],
    *,
    of_another: bool = False,
    past: Past | None = None,
) -> Float[Tensor, "batch pos d_in"]:
    """Run the recursion position by position, and return what the features have to code.

    Args:
        sae: an SAE with memory.
        x: contexts from its `read_contexts`, `(batch, pos, d_in)`.
        walls: the positions that are walls, from there too.
        of_another: give each context the past of the next one at the same positions, as a control.
        past: what is remembered of the positions before, which is brought up to date; None at the start of a context.

    Returns:
        `x_t - p_t`, zero at walls.
    """
    differences, past = [], Past.of(sae, x[:, 0]) if past is None else past
    for own, wall in zip(x.unbind(dim=1), walls.unbind(dim=1), strict=True):
        predicted = sae.predict(past.read())
        predicted = predicted.roll(1, dims=0) if of_another else predicted
        difference = (own - predicted).masked_fill(wall.unsqueeze(-1), 0.0)
        differences.append(difference)
        feature_acts = sae.encode_token(difference, wall)
        past.add(predicted + feature_acts @ sae.W_dec, (feature_acts != 0).any(dim=-1))
    return torch.stack(differences, dim=1)


def run_decoder(
    sae: Any, feature_acts: Float[Tensor, "batch pos d_sae"], *, of_another: bool = False, past: Past | None = None
) -> Float[Tensor, "batch pos d_in"]:
    """Run the same recursion from the features alone.

    Args:
        sae: an SAE with memory.
        feature_acts: features of whole contexts.
        of_another: as in `run_encoder`.
        past: as in `run_encoder`.

    Returns:
        Reconstructions about the mean, without `b_dec`.
    """
    coded, active = feature_acts @ sae.W_dec, (feature_acts != 0).any(dim=-1)
    reconstructions, past = [], Past.of(sae, coded[:, 0]) if past is None else past
    for new, known in zip(coded.unbind(dim=1), active.unbind(dim=1), strict=True):
        predicted = sae.predict(past.read())
        predicted = predicted.roll(1, dims=0) if of_another else predicted
        reconstruction = (predicted + new) * known.unsqueeze(-1)
        reconstructions.append(reconstruction)
        past.add(reconstruction, known)
    return torch.stack(reconstructions, dim=1)


def decode_with_memory(sae: Any, feature_acts: Float[Tensor, "*row d_sae"]) -> Float[Tensor, "*row d_in"]:
    """Compute the reconstructions of features of whole contexts.

    Args:
        sae: an SAE with memory.
        feature_acts: contexts `(batch, pos, d_sae)`, or rows `(batch * context_size, d_sae)`.

    Returns:
        Reconstructions, `b_dec` included, in the form of the features.

    Raises:
        DataError: the features are not those of whole contexts.
    """
    size = sae.cfg.context_size
    if feature_acts.ndim not in (2, 3) or (feature_acts.ndim == 2 and len(feature_acts) % size):
        raise DataError(
            f"expected features of whole contexts, because the decoder has memory, (batch, pos, {sae.cfg.d_sae}) or contexts of "
            f"{size} rows laid end to end, got shape {tuple(feature_acts.shape)}; give e.unsqueeze(0) for one context"
        )
    contexts = feature_acts
    if feature_acts.ndim == 2:
        contexts = rearrange(feature_acts, "(batch pos) d_sae -> batch pos d_sae", pos=size)
    return (run_decoder(sae, contexts) + sae.b_dec).reshape(*feature_acts.shape[:-1], sae.cfg.d_in)


@torch.no_grad()
def impulse_response(
    sae: Any, features: Int[Tensor, " feature"], n_positions: int
) -> Float[Tensor, "feature n_positions d_in"]:
    """Compute what one event of a feature adds to the reconstructions from its position on.

    The recursion is linear in the features, so with g_i(s) for feature i and lag s,

        g_i(0) = W_dec[i],   g_i(s) = [g_i(s-1); g_i(s-2); ...; averages of g_i before s] @ W_memory_in @ W_memory_out
        r_t = sum_i sum_{s >= 0} e_{t-s,i} g_i(s)

    and the exact part that a past event has in `x^_t` is its activation times `g_i`. It ends with the past, at a wall or another position
    without an active feature. The parts are those before the normalization of the input is undone (`normalize_activations`).

    Args:
        sae: an SAE with memory.
        features: indices of the features.
        n_positions: number of positions, the one of the event included.

    Returns:
        The response to an activation of 1, by lag from 0 on.

    Raises:
        ModelError: the SAE has no memory.
        ConfigError: there is no position.
    """
    if not getattr(sae, "has_memory", False):
        raise ModelError(
            f"expected an SAE whose decoder has memory, got one of architecture {sae.cfg.architecture()} without it; train one with "
            "--set memory=predictive"
        )
    if n_positions < 1:
        raise ConfigError(f"expected n_positions of at least 1, got {n_positions}; give a larger number")
    new = sae.W_dec[features]
    past, active = Past.of(sae, new), torch.ones(len(new), dtype=torch.bool)
    responses = [new]
    past.add(new, active.to(new.device))
    for _ in range(n_positions - 1):
        responses.append(sae.predict(past.read()))
        past.add(responses[-1], active.to(new.device))
    return torch.stack(responses, dim=1)


def impulse_norms(sae: Any, lags: Sequence[int]) -> Float[Tensor, "d_sae lag"]:
    """Compute the norm of every feature's impulse response at some lags, over its norm at lag 0; NaN where that is 0.

    Args:
        sae: an SAE with memory.
        lags: numbers of positions after the event.

    Raises:
        ModelError: the SAE has no memory.
    """
    norms = [
        impulse_response(sae, features, max(lags) + 1).norm(dim=-1)
        for features in torch.arange(sae.cfg.d_sae, device=sae.W_dec.device).split(_FEATURES_AT_ONCE)
    ]
    by_lag = torch.cat(norms)
    return by_lag[:, list(lags)] / by_lag[:, :1]
