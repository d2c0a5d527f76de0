"""Remove later positions from what the circular SAE reads, to measure how much of its score is due to the leak.

An SAE that is spliced into an autoregressive model at position t should not depend on later positions. There are two ways to remove them:

- `withhold`: a tap that would read a later position reads nothing;
- `replace`: it reads the same later position of another context, so that every tap still reads typical activations.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from mtsae_lens.errors import ConfigError
from mtsae_lens.sae.temporal import normalize_scales, sequence_reads
from mtsae_lens.sae.training import MTTrainingSAE

Future = Literal["withhold", "replace"]


class WithoutFuture(MTTrainingSAE):
    """A trained MTSAE whose taps read no later position, neither around the circle nor directly."""

    future: Future = "withhold"

    @override
    def encode_scales(
        self, x: Float[Tensor, "batch pos d_in"], walls: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos n_scales d_in"]:
        """Encode as the base class does, with later positions withheld or replaced.

        Args:
            x: input of the encoder.
            walls: the positions that are walls.
        """
        n_positions = x.shape[1]
        position = torch.arange(n_positions, device=x.device)
        offsets, padding = self.read_offsets, self.cfg.padding
        other = sequence_reads(x.roll(1, dims=0), walls.roll(1, dims=0), offsets, padding) if self.future == "replace" else {}
        own = ~walls.unsqueeze(-1)
        reads = {}
        for offset, read in sequence_reads(x, walls, offsets, padding).items():
            later = ((position + offset) % n_positions > position).view(1, -1, 1)
            reads[offset] = torch.where(later, other[offset] * own if other else torch.zeros_like(read), read)
        return normalize_scales(self.convolve(reads), x, self.cfg.scale_norm, self.cfg.context_gain)


def without_future(sae: MTTrainingSAE, future: Future) -> WithoutFuture:
    """Return a copy of a trained SAE that reads no later position.

    Args:
        sae: the trained SAE.
        future: `withhold` or `replace`.

    Raises:
        ConfigError: `future` is something else.
    """
    if future not in get_args(Future):
        raise ConfigError(f"expected future out of {', '.join(map(repr, get_args(Future)))}, got {future!r}; give one of them")
    blind = WithoutFuture(deepcopy(sae.cfg))
    blind.load_state_dict(sae.state_dict())
    blind.future = future
    return blind
