"""Use a SAELens SAE as a `Dictionary` of the dictionary_learning library: `encode`, `decode`, `forward`, `dict_size`, `activation_dim`.

A temporal SAE needs whole contexts, `(batch, pos, activation_dim)`. The library's buffers return shuffled single positions, `(rows,
activation_dim)`. They work for a pointwise SAE and are refused for a temporal one. The library's evaluation functions take any iterator of
activations, so they also run on an iterator of contexts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtyping import Float
from sae_lens import SAE
from safetensors import SafetensorError
from torch import Tensor, nn
from typing_extensions import override

from mtsae_lens.errors import DataError, ModelError
from mtsae_lens.interop.hub import HUB_PREFIX, load_from_hub
from mtsae_lens.sae.temporal_encoder import TemporalEncoder


class SAELensDictionary(nn.Module):
    """A SAELens SAE with the interface of dictionary_learning; the SAE itself is `.sae`.

    Args:
        sae: an SAE of any architecture.

    >>> import torch
    >>> from mtsae_lens import MTSAE, MTSAEConfig
    >>> dictionary = SAELensDictionary(MTSAE(MTSAEConfig(d_in=8, d_sae=16, k=4)))
    >>> x_hat, f = dictionary(torch.randn(2, 10, 8), output_features=True)
    >>> x_hat.shape, f.shape, dictionary.dict_size
    (torch.Size([2, 10, 8]), torch.Size([2, 10, 16]), 16)
    """

    def __init__(self, sae: SAE[Any]) -> None:
        super().__init__()
        self.sae = sae

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str = "cpu") -> SAELensDictionary:
        """Load an SAE from disk or from the hub.

        Args:
            path: a folder in SAELens's layout, or `hub:OWNER/NAME:SAE_ID`.
            device: device to put the SAE on.

        Raises:
            ModelError: the SAE does not exist or is damaged.
        """
        if str(path).startswith(HUB_PREFIX):
            return cls(load_from_hub(str(path), device))
        try:
            return cls(SAE.load_from_disk(path, device=device))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"{path}: expected an SAE in SAELens's layout, got {type(error).__name__}: {error}; give its folder or hub:OWNER/NAME:SAE_ID"
            ) from error

    @property
    def activation_dim(self) -> int:
        """Return the width of the activations, `d_in`."""
        return self.sae.cfg.d_in

    @property
    def dict_size(self) -> int:
        """Return the number of features, `d_sae`."""
        return self.sae.cfg.d_sae

    @override
    def to(self, *args: Any, **kwargs: Any) -> SAELensDictionary:
        """Move the SAE. `nn.Module.to` is overridden because an SAE records its dtype and device.

        Args:
            *args: device or dtype, as for `nn.Module.to`.
            **kwargs: as for `nn.Module.to`.
        """
        self.sae.to(*args, **kwargs)
        return self

    def encode(self, x: Float[Tensor, "*batch activation_dim"]) -> Float[Tensor, "*batch dict_size"]:
        """Compute feature activations.

        Args:
            x: activations of the language model; whole contexts, `(batch, pos, activation_dim)`, for a temporal SAE.

        Raises:
            DataError: a temporal SAE got rows without a position axis.
        """
        if isinstance(self.sae, TemporalEncoder) and x.ndim != 3:
            raise DataError(
                f"expected whole contexts (batch, pos, {self.activation_dim}) for a temporal SAE, got shape {tuple(x.shape)}; pass contexts, "
                "not rows of the library's buffers, which shuffle positions"
            )
        return self.sae.encode(x)

    def decode(self, f: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch activation_dim"]:
        """Compute the reconstruction from feature activations.

        Args:
            f: feature activations.
        """
        return self.sae.decode(f)

    def forward(self, x: Tensor, output_features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Compute the reconstruction.

        Args:
            x: activations of the language model.
            output_features: whether to return the feature activations too, as the library asks for.

        Returns:
            The reconstruction, or the reconstruction and the feature activations.
        """
        f = self.encode(x)
        x_hat = self.decode(f)
        return (x_hat, f) if output_features else x_hat
