"""SAEBench's evaluations on an MTSAE, or on any SAELens SAE. This module does not import sae-bench: it pins numpy below 2 (version 0.6.0), so
it lives in an environment of its own (`examples/saebench/`).

What of SAEBench 0.6.0 an encoder that reads its past can take, by what each evaluation hands to `sae.encode`:

| evaluation | shape | here |
|---|---|---|
| core: fidelity, sparsity, feature density | (batch, pos, d_in) | works (`special_tokens_as_walls` around it) |
| core: weight-based metrics (encoder-decoder cosine, ...) | none, reads `W_enc` | refused: `W_enc` is (n_scales * d_in, d_sae) |
| sparse probing | (batch, pos, d_in), special tokens zero, mean over positions | works |
| SCR, TPP | (batch, pos, d_in) | runs, but an audit (arXiv 2605.18229) advises against using them |
| unlearning | (batch, pos, d_in) | runs in principle; needs WMDP and an instruction-tuned model, not tried |
| absorption | one position of each prompt, (rows, d_in) | refused |
| RAVEL | one position of each prompt, (rows, d_in) | refused |
| autointerp | chosen features by slicing `W_enc`, per architecture | not possible |

SAEBench's `explained_variance` divides by the mean square less the square of a mean of squares, not of the mean: it is not centred, and not
the number that SAELens or `mtsae evaluate` give under that name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor, nn
from typing_extensions import override

from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.origins import display_name
from mtsae_lens.errors import DataError, ModelError
from mtsae_lens.sae.mtsae import TemporalEncoder
from mtsae_lens.upstream import extract_layer_from_tlens_hook_name


@dataclass
class SAEBenchConfig:
    """The fields that SAEBench reads of a custom SAE's `cfg`, flat as it wants them."""

    model_name: str
    d_in: int
    d_sae: int
    hook_name: str
    hook_layer: int
    context_size: int
    architecture: str
    dtype: str
    device: str
    hook_head_index: int | None = None
    prepend_bos: bool = True
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For the file of results."""
        return asdict(self)


class SAEBenchAdapter(nn.Module):
    """An SAE as SAEBench calls custom ones.

    Args:
        sae: trained; its metadata names the hook.
        cutter: says which tokens are special; None takes none for special.

    Raises:
        ModelError: an SAE that does not say its hook.
    """

    def __init__(self, sae: SAE[Any], cutter: ContextCutter | None = None) -> None:
        super().__init__()
        metadata = sae.cfg.metadata
        layer = extract_layer_from_tlens_hook_name(metadata.hook_name or "")
        if layer is None:
            raise ModelError(f"SAEBench needs an SAE at a layer; this one's metadata.hook_name is {metadata.hook_name!r}")
        self.sae = sae
        self.cutter = cutter
        self.cfg = SAEBenchConfig(
            model_name=display_name(metadata.model_name or ""),
            d_in=sae.cfg.d_in,
            d_sae=sae.cfg.d_sae,
            hook_name=metadata.hook_name,
            hook_layer=layer,
            context_size=metadata.context_size or 128,
            architecture=sae.cfg.architecture(),
            dtype=sae.cfg.dtype,
            device=str(sae.device),
            hook_head_index=metadata.hook_head_index,
            prepend_bos=metadata.prepend_bos is not False,
        )
        self._tokens: Tensor | None = None

    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_in"]:
        """The decoder."""
        return self.sae.W_dec

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:
        """The encoder of a pointwise SAE.

        Raises:
            ModelError: a temporal SAE, whose encoder has no direction in `d_in` to compare.
        """
        if isinstance(self.sae, TemporalEncoder):
            raise ModelError(
                f"the encoder of an MTSAE is (n_scales * d_in, d_sae) = {tuple(self.sae.W_enc.shape)}: SAEBench's weight-based metrics, "
                "absorption and autointerp do not apply; set compute_featurewise_weight_based_metrics=False"
            )
        return self.sae.W_enc

    @property
    def device(self) -> torch.device:
        """Where the SAE is."""
        return self.sae.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the SAE."""
        return self.sae.dtype

    @override
    def to(self, *args: Any, **kwargs: Any) -> SAEBenchAdapter:
        """Overrides `nn.Module.to` because an SAE notes its own dtype and device, which moving its parameters alone would not change."""
        self.sae.to(*args, **kwargs)
        self.cfg.device, self.cfg.dtype = str(self.sae.device), self.sae.cfg.dtype
        return self

    def encode(self, x: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_sae"]:
        """Features of whole sequences.

        Raises:
            DataError: positions without their past, for a temporal SAE: absorption and RAVEL ask for that.
        """
        if x.ndim != 3 and isinstance(self.sae, TemporalEncoder):
            raise DataError(
                f"this evaluation hands over single positions, shape {tuple(x.shape)}; an MTSAE needs (batch, pos, {self.cfg.d_in}): of "
                "SAEBench it can take core and sparse probing"
            )
        return self.sae.encode(self._walled(x))

    def decode(self, feature_acts: Float[Tensor, "batch pos d_sae"]) -> Float[Tensor, "batch pos d_in"]:
        """The reconstruction."""
        return self.sae.decode(feature_acts)

    def forward(self, x: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        """The reconstruction of activations."""
        return self.decode(self.encode(x))

    @contextmanager
    def special_tokens_as_walls(self, model: nn.Module) -> Iterator[None]:
        """While it is open, features are encoded with special tokens zero, as in training: SAEBench's core leaves them as they are.

        The tokens are those that went through `model.embed` last, so what is encoded must come from that forward pass.
        """

        def remember(_: nn.Module, args: tuple[Any, ...]) -> None:
            self._tokens = args[0]

        handle = model.embed.register_forward_pre_hook(remember)  # type: ignore[union-attr, operator]
        try:
            yield
        finally:
            handle.remove()
            self._tokens = None

    def _walled(self, x: Tensor) -> Tensor:
        if self._tokens is None or self.cutter is None or not isinstance(self.sae, TemporalEncoder):
            return x
        if self._tokens.shape != x.shape[:2]:
            raise DataError(
                f"activations of shape {tuple(x.shape)} are not of the tokens that ran last, {tuple(self._tokens.shape)}"
            )
        return x.masked_fill(self.cutter.special_positions(self._tokens).unsqueeze(-1).to(x.device), 0.0)
