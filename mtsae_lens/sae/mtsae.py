"""The Multi-Scale Temporal SAE, a SAELens architecture.

    x    = h - b_dec, zero at walls
    z_k  = g_k norm(conv_{r_k}(x))                    one vector per scale k and position; g = 1 for the first, `context_gain` for the others
    e    = act([z_1; ...; z_K] @ W_enc + b_enc)       zero at walls                       (eq. 3 of the paper)
           act([z_1; [z_2; ...; z_K] @ W_context] @ W_enc + b_enc)                        with `context_rank`
    h'   = e @ W_dec + b_dec

`encode` reads earlier positions, `decode` does not: an edit of a feature at position t changes the output at t alone. With
`memory="predictive"` it is the other way round (`mtsae_lens.sae.memory`).
"""

from __future__ import annotations

from sae_lens import SAE
from torch import Tensor
from typing_extensions import override

from mtsae_lens.sae.config import MTSAEConfig
from mtsae_lens.sae.parameters import create_parameters
from mtsae_lens.sae.temporal_encoder import TemporalEncoder


class MTSAE(TemporalEncoder, SAE[MTSAEConfig]):
    """A trained Multi-Scale Temporal SAE, for use like any SAE of SAELens, also in `HookedSAETransformer`.

    Shapes: `taps (n_scales, kernel_size, d_in)`, `W_enc (n_scales * d_in, d_sae)`, `b_enc (d_sae,)`, `W_dec (d_sae, d_in)`, `b_dec
    (d_in,)`, and `log2_dilations (n_scales,)` if dilations are learned. JumpReLU adds
    `threshold (d_sae,)`. With `context_rank` r the context is first multiplied by `W_context ((n_scales - 1) * d_in, r)`, and `W_enc` has
    shape `(d_in + r, d_sae)`.

    >>> import torch
    >>> from mtsae_lens import MTSAE, MTSAEConfig
    >>> sae = MTSAE(MTSAEConfig(d_in=8, d_sae=16, k=4))
    >>> sae.decode(sae.encode(torch.randn(2, 10, 8))).shape
    torch.Size([2, 10, 8])
    """

    @override
    def initialize_weights(self) -> None:
        create_parameters(self)

    @override
    def encode(self, x: Tensor) -> Tensor:
        sae_in, walls = self.read_contexts(x)
        feature_acts, _ = self.features_from_scales(self.encode_scales(sae_in, walls), walls)
        return self._as_given(feature_acts, x)
