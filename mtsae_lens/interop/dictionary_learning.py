"""Any SAELens SAE as a `Dictionary` of the dictionary_learning library: `encode`, `decode`, `forward`, `dict_size`, `activation_dim`.

A temporal SAE needs whole contexts: give `(batch, pos, activation_dim)`. The library's buffers hand out shuffled single positions, `(rows,
activation_dim)`; for a pointwise SAE these are fine, for a temporal one they are refused. Its evaluation functions take any iterator of
activations, so they run on an iterator of contexts.
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
from mtsae_lens.sae.mtsae import TemporalEncoder


class SAELensDictionary(nn.Module):
    """The wrapper; the SAE itself is `.sae`.

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
        """From a folder in SAELens's layout, or from `hub:OWNER/NAME:SAE_ID`.

        Raises:
            ModelError: no SAE there, or a damaged one.
        """
        if str(path).startswith(HUB_PREFIX):
            return cls(load_from_hub(str(path), device))
        try:
            return cls(SAE.load_from_disk(path, device=device))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"{path}: no SAE that can be loaded ({type(error).__name__}: {error})") from error

    @property
    def activation_dim(self) -> int:
        """Width of the activations, `d_in`."""
        return self.sae.cfg.d_in

    @property
    def dict_size(self) -> int:
        """Number of features, `d_sae`."""
        return self.sae.cfg.d_sae

    @override
    def to(self, *args: Any, **kwargs: Any) -> SAELensDictionary:
        """Overrides `nn.Module.to` because an SAE notes its own dtype and device, which moving its parameters alone would not change."""
        self.sae.to(*args, **kwargs)
        return self

    def encode(self, x: Float[Tensor, "*batch activation_dim"]) -> Float[Tensor, "*batch dict_size"]:
        """Feature activations.

        Raises:
            DataError: rows without a position axis, for a temporal SAE.
        """
        if isinstance(self.sae, TemporalEncoder) and x.ndim != 3:
            raise DataError(
                f"a temporal SAE needs whole contexts (batch, pos, {self.activation_dim}); got shape {tuple(x.shape)}. The library's buffers "
                "shuffle positions: pass contexts instead"
            )
        return self.sae.encode(x)

    def decode(self, f: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch activation_dim"]:
        """The reconstruction from feature activations."""
        return self.sae.decode(f)

    def forward(self, x: Tensor, output_features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """The reconstruction, and with `output_features` the activations too: two return types, because the library calls it so."""
        f = self.encode(x)
        x_hat = self.decode(f)
        return (x_hat, f) if output_features else x_hat
