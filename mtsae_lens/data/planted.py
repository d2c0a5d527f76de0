"""Sequences with planted time: features of known directions, time scales and onsets, on SAELens's synthetic feature dictionaries.

    h[t] = sum_i a_i[t] * d_i + noise,        d_i the directions of a `FeatureDictionary`, a_i[t] >= 0

Three kinds of feature (`PLANTED_KINDS`):

- *persistent*: fires in episodes of a known mean length, from one token to a document. A single position shows it, its neighbours confirm it.
- *cue*: fires at single positions, each as part of several patterns or alone.
- *pattern*: two given cues at given lags, then an *echo* of the pattern's own direction, so weak that noise and the other features drown it. No
  single position shows a pattern: its echo is faint, and each of its cues is shared with other patterns and also fires alone.

SAELens's own generators draw every row independently of the others; here rows follow each other.
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

from mtsae_lens.data.blocks import SequenceBlocks
from mtsae_lens.errors import ConfigError
from mtsae_lens.upstream import FeatureDictionary, orthogonal_initializer

PlantedKind = Literal["persistent", "cue", "pattern"]


@dataclass(frozen=True)
class PlantedConfig:
    """What is planted. The defaults put 160 features into 64 dimensions, about 3.4 of them active at a position."""

    d_in: int = 64
    context_size: int = 128
    durations: tuple[int, ...] = (1, 4, 16, 64)
    """Mean length of an episode, in positions: a token, a phrase, a sentence, a document. Lengths are geometric."""
    n_features_per_duration: int = 24
    persistent_rate: float = 0.02
    """Share of positions at which a persistent feature is active, whatever its duration."""
    lags: tuple[tuple[int, int], ...] = ((1, 2), (2, 4), (4, 8), (8, 16))
    """How far back the two cues of a pattern lie."""
    n_patterns_per_lags: int = 8
    pattern_rate: float = 0.01
    n_cues: int = 32
    magnitude: float = 1.0
    """Mean activation of a persistent feature; its deviation is a fifth of that."""
    cue_magnitude: float = 1.5
    echo_magnitude: float = 0.8
    noise: float = 0.2
    """Standard deviation of the Gaussian noise in every dimension."""
    seed: int = 0
    """Of the dictionary and of which cues make which pattern."""

    def __post_init__(self) -> None:
        least = {"d_in": 1, "context_size": 1, "n_features_per_duration": 0, "n_patterns_per_lags": 0, "n_cues": 0}
        for name, lowest in least.items():
            if type(getattr(self, name)) is not int or getattr(self, name) < lowest:
                raise ConfigError(f"{name} must be a whole number from {lowest}; got {getattr(self, name)!r}")
        for name in ("magnitude", "cue_magnitude", "echo_magnitude", "noise"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must not be negative; got {getattr(self, name)!r}")
        if any(duration < 1 for duration in self.durations):
            raise ConfigError(f"durations must be at least one position; got {self.durations}")
        for near, far in self.lags:
            if not 0 < near < far < self.context_size:
                raise ConfigError(f"lags must be (near, far) with 0 < near < far < context_size; got {(near, far)}")
        if self.n_cues < 2 and self.lags:
            raise ConfigError(f"a pattern needs two different cues; got n_cues={self.n_cues}")
        for name in ("persistent_rate", "pattern_rate"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name} must lie between 0 and 1; got {getattr(self, name)}")
        n_patterns = len(self.lags) * self.n_patterns_per_lags
        if n_patterns and 2 * n_patterns * self.pattern_rate >= self.n_cues:
            raise ConfigError(
                f"{n_patterns} patterns at a rate of {self.pattern_rate} need more than {self.n_cues} cues: each would fire nearly everywhere; "
                "give more n_cues or a lower pattern_rate"
            )
        shortest = min(self.durations, default=1)
        if self.durations and self.persistent_rate > shortest / (shortest + 1):
            raise ConfigError(
                f"episodes of {shortest} positions with a position between them fill at most {shortest / (shortest + 1):.2f} of all; got "
                f"persistent_rate={self.persistent_rate}"
            )


@dataclass(frozen=True, eq=False)
class PlantedSample:
    """Sequences and the truth about them. Position 0 is a wall, as BOS is in a language model."""

    h: Float[Tensor, "batch pos d_in"]
    feature_acts: Float[Tensor, "batch pos feature"]

    @property
    def onsets(self) -> Bool[Tensor, "batch pos feature"]:
        """Where a feature is active and was not at the position before."""
        active = self.feature_acts > 0
        before = torch.nn.functional.pad(active, (0, 0, 1, 0))[:, :-1]
        return active & ~before


@dataclass(frozen=True, eq=False)
class PlantedFeatures:
    """Which features there are, in the order of the dictionary, and how to draw sequences of them."""

    cfg: PlantedConfig = field(default_factory=PlantedConfig)

    def __post_init__(self) -> None:
        cfg = self.cfg
        generator = torch.Generator().manual_seed(cfg.seed)
        n_patterns = len(cfg.lags) * cfg.n_patterns_per_lags
        cues = [torch.randperm(cfg.n_cues, generator=generator)[:2] for _ in range(n_patterns)]
        with torch.random.fork_rng(), torch.enable_grad():  # the initializer is an optimisation
            # a stream of its own: an SAE started from the same seed would know the directions in part
            torch.manual_seed(random.Random(f"dictionary {cfg.seed}").getrandbits(32))
            dictionary = FeatureDictionary(self.n_features, cfg.d_in, bias=False, initializer=orthogonal_initializer())
        object.__setattr__(self, "dictionary", dictionary.requires_grad_(False))
        object.__setattr__(self, "pattern_cues", torch.stack(cues) if cues else torch.zeros(0, 2, dtype=torch.long))

    dictionary: FeatureDictionary = field(init=False)
    pattern_cues: Int[Tensor, "pattern 2"] = field(init=False)
    """The far and the near cue of every pattern."""

    @property
    def kinds(self) -> list[PlantedKind]:
        """The kind of every feature."""
        cfg = self.cfg
        counts: dict[PlantedKind, int] = {
            "persistent": len(cfg.durations) * cfg.n_features_per_duration,
            "cue": cfg.n_cues,
            "pattern": len(cfg.lags) * cfg.n_patterns_per_lags,
        }
        return [kind for kind, count in counts.items() for _ in range(count)]

    @property
    def time_scales(self) -> list[int]:
        """The time scale of every feature, in positions: mean duration, 1 for a cue, the farther lag of a pattern."""
        cfg = self.cfg
        persistent = [duration for duration in cfg.durations for _ in range(cfg.n_features_per_duration)]
        patterns = [far for _, far in cfg.lags for _ in range(cfg.n_patterns_per_lags)]
        return [*persistent, *(1 for _ in range(cfg.n_cues)), *patterns]

    @property
    def n_features(self) -> int:
        """Features of all kinds."""
        return len(self.kinds)

    @torch.no_grad()
    def sample(self, n_sequences: int, generator: torch.Generator) -> PlantedSample:
        """Draw sequences; all randomness comes from the generator."""
        cfg = self.cfg
        feature_acts = torch.cat([self._persistent(n_sequences, generator), *self._patterns(n_sequences, generator)], dim=-1)
        feature_acts[:, 0] = 0
        noise = cfg.noise * torch.randn(n_sequences, cfg.context_size, cfg.d_in, generator=generator)
        h = self.dictionary(feature_acts) + noise
        h[:, 0] = 0
        return PlantedSample(h, feature_acts)

    def _persistent(self, n_sequences: int, generator: torch.Generator) -> Float[Tensor, "batch pos feature"]:
        """A two-state Markov chain for each feature, begun in its stationary state."""
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
        before = max((far for _, far in cfg.lags), default=0)  # the first echoes have their cues before the context
        cues = torch.zeros(n_sequences, before + cfg.context_size, cfg.n_cues)
        occurs = torch.rand(n_sequences, cfg.context_size, n_patterns, generator=generator) < cfg.pattern_rate
        lags = torch.tensor(cfg.lags, dtype=torch.long).view(-1, 2).repeat_interleave(cfg.n_patterns_per_lags, dim=0).flip(-1)
        sequence, position, pattern = occurs.nonzero(as_tuple=True)
        for cue, lag in zip(self.pattern_cues.T, lags.T, strict=True):
            cues[sequence, before + position - lag[pattern], cue[pattern]] = cfg.cue_magnitude
        # as many cues fire alone as in patterns, so a cue by itself promises little
        alone = torch.rand(cues.shape, generator=generator) < 2 * n_patterns * cfg.pattern_rate / max(cfg.n_cues, 1)
        return cues.masked_fill(alone, cfg.cue_magnitude)[:, before:], occurs * cfg.echo_magnitude


@dataclass(frozen=True)
class PlantedBlocks(SequenceBlocks):
    """An endless stream of fresh planted sequences; see `SequenceBlocks`."""

    features: PlantedFeatures
    batch_size_sequences: int = 4
    block_size_batches: int = 16
    seed: int = 0

    def blocks(self, first: int) -> Generator[tuple[int, Float[Tensor, "batch pos d_in"]], None, None]:
        """Each block from its own generator, so none repeats and any can be entered."""
        number = first
        while True:
            yield number, self.features.sample(self.batch_size_sequences * self.block_size_batches, self.generator(number)).h
            number += 1


def rows(sample: PlantedSample) -> tuple[Float[Tensor, "row d_in"], Float[Tensor, "row feature"]]:
    """Activations and truth of all positions but the first, as rows."""
    return tuple(rearrange(x[:, 1:], "batch pos width -> (batch pos) width") for x in (sample.h, sample.feature_acts))  # type: ignore[return-value]
