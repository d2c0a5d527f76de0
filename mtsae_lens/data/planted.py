"""Generate sequences with known temporal structure: features of known directions, time scales and onsets, on SAELens's synthetic
dictionaries.

    h[t] = sum_i a_i[t] * d_i + noise,    d_i the directions of a `FeatureDictionary`, a_i[t] >= 0

There are three kinds of features (`PLANTED_KINDS`):

- A *persistent* feature is active in episodes of a known mean length, from one token to a document. A single position shows it, and the
  neighboring positions confirm it.
- A *cue* is active at single positions, either as a part of one of several patterns or alone.
- A *pattern* consists of two given cues at given lags, followed by an *echo*: a component along the pattern's own direction that is too
  weak to stand out from the noise and the other features. No single position reveals a pattern: its echo is weak, and each of its cues
  is shared with other patterns and also occurs alone.

SAELens's own generators draw every row independently; here, neighboring rows depend on each other.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtsae_lens.data.blocks import Block, SequenceBlocks
from mtsae_lens.errors import ConfigError
from mtsae_lens.upstream import FeatureDictionary, orthogonal_initializer

PlantedKind = Literal["persistent", "cue", "pattern"]


@dataclass(frozen=True)
class PlantedConfig:
    """The parameters of the planted features. The defaults put 160 features into 64 dimensions, about 3.4 of them active at a position."""

    d_in: int = 64
    context_size: int = 128
    durations: tuple[int, ...] = (1, 4, 16, 64)
    """Mean lengths of an episode, in positions: a token, a phrase, a sentence, a document. Lengths have a geometric distribution."""
    n_features_per_duration: int = 24
    persistent_rate: float = 0.02
    """Share of positions at which a persistent feature is active, the same for every duration."""
    lags: tuple[tuple[int, int], ...] = ((1, 2), (2, 4), (4, 8), (8, 16))
    """Distances from a pattern back to its two cues, in positions, as (near, far)."""
    n_patterns_per_lags: int = 8
    pattern_rate: float = 0.01
    n_cues: int = 32
    magnitude: float = 1.0
    """Mean activation of a persistent feature; the standard deviation is a fifth of that."""
    cue_magnitude: float = 1.5
    echo_magnitude: float = 0.8
    noise: float = 0.2
    """Standard deviation of the Gaussian noise in every dimension."""
    seed: int = 0
    """Seed of the dictionary and of the assignment of cues to patterns."""

    def __post_init__(self) -> None:
        least = {"d_in": 1, "context_size": 1, "n_features_per_duration": 0, "n_patterns_per_lags": 0, "n_cues": 0}
        for name, lowest in least.items():
            if type(getattr(self, name)) is not int or getattr(self, name) < lowest:
                raise ConfigError(
                    f"expected {name} to be an integer of at least {lowest}, got {getattr(self, name)!r}; change it"
                )
        for name in ("magnitude", "cue_magnitude", "echo_magnitude", "noise"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"expected {name} of at least 0, got {getattr(self, name)!r}; raise it")
        if any(duration < 1 for duration in self.durations):
            raise ConfigError(f"expected durations of at least 1 position, got {self.durations}; raise them")
        for near, far in self.lags:
            if not 0 < near < far < self.context_size:
                raise ConfigError(
                    f"expected lags (near, far) with 0 < near < far < context_size={self.context_size}, got {(near, far)}; change them"
                )
        if self.n_cues < 2 and self.lags:
            raise ConfigError(
                f"expected n_cues of at least 2, two for each pattern, got {self.n_cues}; raise it or give lags=()"
            )
        for name in ("persistent_rate", "pattern_rate"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"expected {name} between 0 and 1, got {getattr(self, name)}; change it")
        n_patterns = len(self.lags) * self.n_patterns_per_lags
        if n_patterns and 2 * n_patterns * self.pattern_rate >= self.n_cues:
            raise ConfigError(
                f"expected more than {2 * n_patterns * self.pattern_rate:g} cues for {n_patterns} patterns at "
                f"pattern_rate={self.pattern_rate}, got n_cues={self.n_cues}, so each would be active nearly everywhere; raise n_cues or "
                "lower pattern_rate"
            )
        shortest = min(self.durations, default=1)
        if self.durations and self.persistent_rate > shortest / (shortest + 1):
            raise ConfigError(
                f"expected persistent_rate of at most {shortest / (shortest + 1):.2f} (episodes of {shortest} positions with one position "
                f"between them), got {self.persistent_rate}; lower it"
            )


@dataclass(frozen=True, eq=False)
class PlantedSample:
    """Sequences and the true feature activations."""

    h: Float[Tensor, "batch pos d_in"]
    feature_acts: Float[Tensor, "batch pos feature"]

    @property
    def masked(self) -> Bool[Tensor, "batch pos"]:
        """Return a mask that is True at position 0, which is a wall as a BOS token is in a language model."""
        return (torch.arange(self.h.shape[1]) == 0).expand(self.h.shape[:2])

    @property
    def onsets(self) -> Bool[Tensor, "batch pos feature"]:
        """Return a mask that is True where a feature is active and was inactive at the previous position."""
        active = self.feature_acts > 0
        before = torch.nn.functional.pad(active, (0, 0, 1, 0))[:, :-1]
        return active & ~before


@dataclass(frozen=True, eq=False)
class PlantedFeatures:
    """The planted features, in the order of the dictionary, and a generator of sequences."""

    cfg: PlantedConfig = field(default_factory=PlantedConfig)

    def __post_init__(self) -> None:
        cfg = self.cfg
        generator = torch.Generator().manual_seed(cfg.seed)
        n_patterns = len(cfg.lags) * cfg.n_patterns_per_lags
        cues = [torch.randperm(cfg.n_cues, generator=generator)[:2] for _ in range(n_patterns)]
        with torch.random.fork_rng(), torch.enable_grad():  # the initializer runs an optimization
            # A separate random stream: an SAE initialized from the same seed would already know some of the directions.
            torch.manual_seed(random.Random(f"dictionary {cfg.seed}").getrandbits(32))
            dictionary = FeatureDictionary(self.n_features, cfg.d_in, bias=False, initializer=orthogonal_initializer())
        object.__setattr__(self, "dictionary", dictionary.requires_grad_(False))
        object.__setattr__(self, "pattern_cues", torch.stack(cues) if cues else torch.zeros(0, 2, dtype=torch.long))

    dictionary: FeatureDictionary = field(init=False)
    pattern_cues: Int[Tensor, "pattern 2"] = field(init=False)
    """For every pattern, the index of its far cue and of its near cue."""

    @property
    def kinds(self) -> list[PlantedKind]:
        """Return the kind of every feature."""
        cfg = self.cfg
        counts: dict[PlantedKind, int] = {
            "persistent": len(cfg.durations) * cfg.n_features_per_duration,
            "cue": cfg.n_cues,
            "pattern": len(cfg.lags) * cfg.n_patterns_per_lags,
        }
        return [kind for kind, count in counts.items() for _ in range(count)]

    @property
    def time_scales(self) -> list[int]:
        """Return the time scale of every feature, in positions: the mean duration, 1 for a cue, or the far lag of a pattern."""
        cfg = self.cfg
        persistent = [duration for duration in cfg.durations for _ in range(cfg.n_features_per_duration)]
        patterns = [far for _, far in cfg.lags for _ in range(cfg.n_patterns_per_lags)]
        return [*persistent, *(1 for _ in range(cfg.n_cues)), *patterns]

    @property
    def n_features(self) -> int:
        """Return the number of features of all kinds."""
        return len(self.kinds)

    @torch.no_grad()
    def sample(self, n_sequences: int, generator: torch.Generator) -> PlantedSample:
        """Draw sequences.

        Args:
            n_sequences: number of sequences.
            generator: the only source of randomness.

        Returns:
            Activations `(batch, pos, d_in)` and true feature activations `(batch, pos, feature)`.
        """
        cfg = self.cfg
        feature_acts = torch.cat([self._persistent(n_sequences, generator), *self._patterns(n_sequences, generator)], dim=-1)
        feature_acts[:, 0] = 0
        noise = cfg.noise * torch.randn(n_sequences, cfg.context_size, cfg.d_in, generator=generator)
        h = self.dictionary(feature_acts) + noise
        h[:, 0] = 0
        return PlantedSample(h, feature_acts)

    def _persistent(self, n_sequences: int, generator: torch.Generator) -> Float[Tensor, "batch pos feature"]:
        """Draw a two-state Markov chain for each feature, starting from its stationary distribution."""
        cfg = self.cfg
        stop = 1 / torch.tensor(cfg.durations, dtype=torch.float32).repeat_interleave(cfg.n_features_per_duration)
        start = stop * cfg.persistent_rate / (1 - cfg.persistent_rate)
        shape = (cfg.context_size, n_sequences, len(stop))
        active = torch.rand(shape[1:], generator=generator) < cfg.persistent_rate
        steps = []
        for uniform in torch.rand(shape, generator=generator):
            steps.append(active)
            active = torch.where(active, uniform >= stop, uniform < start)
        magnitudes = cfg.magnitude * (1 + 0.2 * torch.randn(shape, generator=generator)).clamp(min=0.0)
        return rearrange(torch.stack(steps) * magnitudes, "pos batch feature -> batch pos feature")

    def _patterns(
        self, n_sequences: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "batch pos cue"], Float[Tensor, "batch pos pattern"]]:
        cfg = self.cfg
        n_patterns = len(self.pattern_cues)
        before = max((far for _, far in cfg.lags), default=0)  # the cues of the first echoes lie before the context
        cues = torch.zeros(n_sequences, before + cfg.context_size, cfg.n_cues)
        occurs = torch.rand(n_sequences, cfg.context_size, n_patterns, generator=generator) < cfg.pattern_rate
        lags = torch.tensor(cfg.lags, dtype=torch.long).view(-1, 2).repeat_interleave(cfg.n_patterns_per_lags, dim=0).flip(-1)
        sequence, position, pattern = occurs.nonzero(as_tuple=True)
        for cue, lag in zip(self.pattern_cues.T, lags.T, strict=True):
            cues[sequence, before + position - lag[pattern], cue[pattern]] = cfg.cue_magnitude
        # As many cues occur alone as in patterns, so a cue by itself predicts little.
        alone = torch.rand(cues.shape, generator=generator) < 2 * n_patterns * cfg.pattern_rate / max(cfg.n_cues, 1)
        return cues.masked_fill(alone, cfg.cue_magnitude)[:, before:], occurs * cfg.echo_magnitude


@dataclass(frozen=True)
class PlantedBlocks(SequenceBlocks):
    """An endless stream of new planted sequences, see `SequenceBlocks`."""

    features: PlantedFeatures
    batch_size_sequences: int = 4
    block_size_batches: int = 16
    seed: int = 0

    def blocks(self, first: int) -> Generator[Block, None, None]:
        """Yield numbered blocks. Each block has its own random generator, so no block repeats and the stream can start at any block.

        Args:
            first: number of the first block.
        """
        number = first
        while True:
            sample = self.features.sample(self.batch_size_sequences * self.block_size_batches, self.generator(number))
            yield Block(number, sample.h, sample.masked)
            number += 1


def flatten_positions(sample: PlantedSample) -> tuple[Float[Tensor, "row d_in"], Float[Tensor, "row feature"]]:
    """Return the activations and the true feature activations of all positions but the first, as rows.

    Args:
        sample: the sequences.

    Returns:
        Activations `(row, d_in)` and feature activations `(row, feature)`.
    """
    return tuple(rearrange(x[:, 1:], "batch pos width -> (batch pos) width") for x in (sample.h, sample.feature_acts))  # type: ignore[return-value]
