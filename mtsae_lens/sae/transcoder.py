"""The temporal transcoder, a SAELens architecture: the encoder of an MTSAE reads one hook, and its decoder writes another.

    x    = h - b_in, zero at walls
    e    = the features of an MTSAE that reads x                     (`mtsae_lens.sae.mtsae`)
    y'   = e @ W_dec + b_dec                                         what the other hook holds at the same position

An SAE finds its target in its input, so the context can only help to code it. A transcoder's target is elsewhere: what attention brings from
earlier tokens is not in the embedding of the token, and no map of that token alone can explain it.

It is SAELens's `Transcoder` with another encoder: `d_out`, `W_dec (d_sae, d_out)`, `b_dec (d_out,)`, and `metadata.hook_name_out`. As there,
`b_dec` is not subtracted from the input; `b_in (d_in,)` is, so that the encoder reads differences to the mean as it does in an SAE.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import Transcoder, TranscoderConfig
from torch import Tensor, nn
from typing_extensions import override

from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.sae.config import MTSAEConfig, MTTrainingSAEConfig
from mtsae_lens.sae.mtsae import MTSAE
from mtsae_lens.sae.temporal import normalize_scales
from mtsae_lens.sae.temporal_encoder import TemporalEncoder
from mtsae_lens.sae.training import MTTrainingSAE

TRANSCODER = "mtsae_transcoder"


def _check_transcoder(cfg: Any) -> None:
    for name, expected in (("memory", "none"), ("reshape_activations", "none"), ("apply_b_dec_to_input", False)):
        value = getattr(cfg, name)
        if value != expected:
            raise ConfigError(f"expected {name}={expected!r} for a transcoder, got {value!r}; leave it out")


@dataclass(kw_only=True)
class MTSAETranscoderConfig(MTSAEConfig, TranscoderConfig):
    """Configure a temporal transcoder for inference; `MTSAETranscoder` has the equations.

    Raises:
        ConfigError: a setting has an invalid value, or one that does not fit another setting.
    """

    d_out: int = field()
    """Width of the hook that is decoded."""

    apply_b_dec_to_input: bool = False
    """False: `b_dec` belongs to the other hook."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return TRANSCODER

    @override
    def __post_init__(self) -> None:
        _check_transcoder(self)
        super().__post_init__()


@dataclass(kw_only=True)
class MTTrainingTranscoderConfig(MTTrainingSAEConfig):
    """Configure a temporal transcoder in training; `MTTrainingTranscoder` has the loss.

    Raises:
        ConfigError: a setting has an invalid value, or one that does not fit another setting.
    """

    d_out: int
    """Width of the hook that is decoded."""

    apply_b_dec_to_input: bool = False
    """False: `b_dec` belongs to the other hook."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return TRANSCODER

    @override
    def __post_init__(self) -> None:
        _check_transcoder(self)
        super().__post_init__()


class _Transcodes(TemporalEncoder):
    """What training and inference share: the center of the input, and the width of the output."""

    b_in: nn.Parameter  # (d_in,)

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.b_in = nn.Parameter(torch.zeros(self.cfg.d_in, dtype=self.dtype, device=self.device))

    @property
    @override
    def center(self) -> Float[Tensor, " d_in"]:
        return self.b_in

    @property
    @override
    def decoded_width(self) -> int:
        return self.cfg.d_out

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        super().fold_activation_norm_scaling_factor(scaling_factor)
        self.b_in.data /= scaling_factor


class MTSAETranscoder(_Transcodes, MTSAE, Transcoder):
    """A trained temporal transcoder, for use like any transcoder of SAELens.

    Shapes are those of `MTSAE`, but `W_dec (d_sae, d_out)` and `b_dec (d_out,)`; `b_in` has shape `(d_in,)`.

    >>> import torch
    >>> from mtsae_lens import MTSAETranscoder, MTSAETranscoderConfig
    >>> transcoder = MTSAETranscoder(MTSAETranscoderConfig(d_in=8, d_out=6, d_sae=16, k=4))
    >>> transcoder(torch.randn(2, 10, 8)).shape
    torch.Size([2, 10, 6])
    """

    @override
    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> MTSAETranscoder:
        return cls(MTSAETranscoderConfig.from_dict(config_dict))


class MTTrainingTranscoder(_Transcodes, MTTrainingSAE):
    """A temporal transcoder in training.

    A batch is one of those of `MTTrainingSAE`, with the `d_out` activations of the other hook beside each row: what is to be decoded there. The
    loss, the auxiliary loss of dead features and all that is logged are of that hook. `mtsae_lens.training.transcoding` sets how it starts.
    """

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.register_buffer("output_scale", torch.ones((), dtype=self.dtype, device=self.device))
        """The factor by which the other hook is scaled in training, beyond the factor of the input."""

    @override
    def _start_encoder(self) -> Float[Tensor, "d_in d_sae"]:
        """Draw directions of unit norm: the rows of the decoder are those of another hook."""
        drawn = torch.randn(self.cfg.d_sae, self.cfg.d_in, dtype=self.W_enc.dtype).to(self.W_enc.device)
        return torch.nn.functional.normalize(drawn, dim=-1).T

    @override
    def _convolve_batch(self, batch: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        width = batch.shape[-1] - self.cfg.d_out
        if width < self.cfg.d_in:
            raise DataError(
                f"expected rows of what is read and, beside it, the d_out={self.cfg.d_out} activations to decode, got rows of width "
                f"{batch.shape[-1]}; give torch.cat([x, y], dim=-1)"
            )
        read, target = batch.split([width, self.cfg.d_out], dim=-1)
        _, x, convolved, walls = super()._convolve_batch(read, step)
        return target.flatten(0, -2).to(self.dtype) * self.output_scale, x, convolved, walls

    @torch.no_grad()
    def read_encoder(self, batch: Tensor) -> tuple[Float[Tensor, "row encoder_d_in"], Float[Tensor, "row d_out"]]:
        """Read the positions of a batch that are not walls.

        Args:
            batch: as in training.

        Returns:
            The input of the encoder at each position, and what is to be decoded there, both scaled as in training.
        """
        target, x, convolved, walls = self._convolve_batch(batch, step=1)
        z = normalize_scales(convolved, x, self.cfg.scale_norm, self.cfg.context_gain)
        kept = ~walls.flatten()
        return self.encoder_input(z).flatten(0, -2)[kept], target[kept]

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        super().fold_activation_norm_scaling_factor(scaling_factor)
        self.W_dec.data /= self.output_scale
        self.b_dec.data /= self.output_scale
        self.output_scale.fill_(1.0)

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        state_dict.setdefault(
            "output_scale", state_dict["b_dec"].new_ones(())
        )  # it is folded into the weights of a trained SAE

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        state_dict.pop("output_scale", None)
