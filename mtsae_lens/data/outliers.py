"""Streams with outlier dimensions: a few dimensions with a huge constant mean and a large variance, as in Gemma.

    h'[t, j] = scale * h[t, j] + offset                for j among the outlier dimensions; every other dimension is as it was

so the same features are in the stream, and there is as much to find in it. Where what varies in `h` has norm v (root mean square), the
offset is such that the norm of the mean is `mean_to_variation` times that of what varies in `h'`.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from mtsae_lens.data.blocks import SequenceBlocks
from mtsae_lens.errors import ConfigError


@dataclass(frozen=True)
class OutlierDimensions:
    """Which dimensions are outliers, and by how much. The defaults are the shape of Gemma-3-270M at layer 9."""

    n_dimensions: int = 2
    scale: float = 4.0
    """Factor on the variation of an outlier dimension."""
    mean_to_variation: float = 4.5
    """Norm of the mean over the norm of what varies about it."""

    def __post_init__(self) -> None:
        if self.n_dimensions < 1:
            raise ConfigError(f"expected n_dimensions of at least 1; got {self.n_dimensions}")
        if not (self.scale > 0 and self.mean_to_variation > 0):
            raise ConfigError(f"expected a positive scale and mean_to_variation; got {self.scale} and {self.mean_to_variation}")

    def added_to(
        self, h: Float[Tensor, "batch pos d_in"], reference: Float[Tensor, "row d_in"]
    ) -> Float[Tensor, "batch pos d_in"]:
        """Make the last dimensions outliers.

        Args:
            h: contexts, masked positions zero.
            reference: rows of the same stream, which set the size of the offset.

        Returns:
            The same contexts with outlier dimensions, masked positions still zero.
        """
        if self.n_dimensions > h.shape[-1]:
            raise ConfigError(f"expected at most {h.shape[-1]} outlier dimensions; got {self.n_dimensions}")
        scale = torch.ones(h.shape[-1])
        scale[-self.n_dimensions :] = self.scale
        variation = ((reference - reference.mean(dim=0)) * scale).pow(2).sum(dim=-1).mean().sqrt()
        offset = torch.zeros(h.shape[-1])
        offset[-self.n_dimensions :] = self.mean_to_variation * variation / self.n_dimensions**0.5
        return torch.where((h != 0).any(dim=-1, keepdim=True), h * scale + offset, 0.0)


@dataclass(frozen=True)
class OutlierBlocks(SequenceBlocks):
    """Any stream, with outlier dimensions. Its first block sets the size of the offset."""

    stream: SequenceBlocks
    outliers: OutlierDimensions = OutlierDimensions()

    def __post_init__(self) -> None:
        for name in ("batch_size_sequences", "block_size_batches", "seed"):
            object.__setattr__(self, name, getattr(self.stream, name))

    @override
    def context_order(self, number: int, n_contexts: int) -> Int[Tensor, " context"]:
        return self.stream.context_order(number, n_contexts)

    def blocks(self, first: int) -> Generator[tuple[int, Float[Tensor, "batch pos d_in"]], None, None]:
        """See `SequenceBlocks.blocks`."""
        _, h = next(self.stream.blocks(0))
        reference = h[(h != 0).any(dim=-1)]
        for number, block in self.stream.blocks(first):
            yield number, self.outliers.added_to(block, reference)
