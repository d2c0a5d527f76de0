"""Add outlier dimensions to activations: a few dimensions with a very large constant mean and a large variance, as in Gemma.

    h'[t, j] = scale * h[t, j] + offset        for j among the outlier dimensions; every other dimension is unchanged

so the activations contain the same features and the same information. The offset is chosen so that the norm of the mean of `h'` is
`mean_to_variation` times the root-mean-square norm of its deviation from the mean.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from mtsae_lens.data.blocks import Block, SequenceBlocks
from mtsae_lens.errors import ConfigError


@dataclass(frozen=True)
class OutlierDimensions:
    """Which dimensions are outliers, and by how much. The defaults imitate Gemma-3-270M at layer 9."""

    n_dimensions: int = 2
    scale: float = 4.0
    """Factor on the values of an outlier dimension, before the offset is added."""
    mean_to_variation: float = 4.5
    """Norm of the mean, divided by the root-mean-square norm of the deviation from it."""

    def __post_init__(self) -> None:
        if self.n_dimensions < 1:
            raise ConfigError(f"expected n_dimensions of at least 1, got {self.n_dimensions}; raise it")
        if not (self.scale > 0 and self.mean_to_variation > 0):
            raise ConfigError(
                f"expected a positive scale and mean_to_variation, got {self.scale} and {self.mean_to_variation}; give positive numbers"
            )

    def added_to(
        self, h: Float[Tensor, "batch pos d_in"], reference: Float[Tensor, "row d_in"]
    ) -> Float[Tensor, "batch pos d_in"]:
        """Turn the last dimensions of activations into outliers.

        Args:
            h: contexts `(batch, pos, d_in)`.
            reference: rows `(row, d_in)` of the same activations, which set the size of the offset.

        Returns:
            The same contexts with outlier dimensions, at masked positions too.

        Raises:
            ConfigError: there are more outlier dimensions than dimensions.
        """
        if self.n_dimensions > h.shape[-1]:
            raise ConfigError(f"expected at most {h.shape[-1]} outlier dimensions, got {self.n_dimensions}; lower n_dimensions")
        scale = torch.ones(h.shape[-1])
        scale[-self.n_dimensions :] = self.scale
        variation = ((reference - reference.mean(dim=0)) * scale).pow(2).sum(dim=-1).mean().sqrt()
        offset = torch.zeros(h.shape[-1])
        offset[-self.n_dimensions :] = self.mean_to_variation * variation / self.n_dimensions**0.5
        return h * scale + offset


@dataclass(frozen=True)
class OutlierBlocks(SequenceBlocks):
    """A stream of activations with outlier dimensions added. Its first block sets the size of the offset."""

    stream: SequenceBlocks
    outliers: OutlierDimensions = OutlierDimensions()

    def __post_init__(self) -> None:
        for name in ("batch_size_sequences", "block_size_batches", "seed"):
            object.__setattr__(self, name, getattr(self.stream, name))

    @override
    def context_order(self, number: int, n_contexts: int) -> Int[Tensor, " context"]:
        return self.stream.context_order(number, n_contexts)

    def blocks(self, first: int) -> Generator[Block, None, None]:
        """Yield numbered blocks, see `SequenceBlocks.blocks`.

        Args:
            first: number of the first block.
        """
        measured = next(self.stream.blocks(0))
        reference = measured.h[~measured.masked]
        for block in self.stream.blocks(first):
            yield replace(block, h=self.outliers.added_to(block.h, reference))
