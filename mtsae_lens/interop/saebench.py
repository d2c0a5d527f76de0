"""Run SAEBench's evaluations on an MTSAE or any other SAELens SAE.

This module does not import sae-bench, because sae-bench 0.6.0 requires numpy below 2. It needs a separate environment: see
`examples/saebench/`.

Which evaluations of SAEBench 0.6.0 work with an encoder that reads earlier positions depends on what they pass to `sae.encode`:

| evaluation | shape | result |
|---|---|---|
| core: fidelity, sparsity, feature density | (batch, pos, d_in) | works (`special_tokens_as_walls` around it) |
| core: weight-based metrics (encoder-decoder cosine, ...) | none, reads `W_enc` | refused: `W_enc` is (n_scales * d_in, d_sae) |
| sparse probing | (batch, pos, d_in), special tokens zero, mean over positions | works |
| SCR, TPP | (batch, pos, d_in) | runs, but an audit (arXiv 2605.18229) advises against using them |
| unlearning | (batch, pos, d_in) | should run; not tried, because it needs WMDP and an instruction-tuned model |
| absorption | one position of each prompt, (rows, d_in) | refused |
| RAVEL | one position of each prompt, (rows, d_in) | refused |
| autointerp | chosen features by slicing `W_enc`, per architecture | not possible |

SAEBench's `explained_variance` is not the metric that SAELens and `mtsae evaluate` report under that name: it subtracts the square of a
mean of squares, not of the mean, from the mean square, so it is not centered.
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
from mtsae_lens.data.masks import zero_rows
from mtsae_lens.data.origins import display_name
from mtsae_lens.errors import DataError, ModelError
from mtsae_lens.sae.temporal_encoder import TemporalEncoder
from mtsae_lens.splice.hook_checks import check_one_hook
from mtsae_lens.upstream import extract_layer_from_tlens_hook_name


@dataclass
class SAEBenchConfig:
    """The fields of a custom SAE's `cfg` that SAEBench reads, without nesting."""

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
        """Return the fields as a dictionary, for the file of results."""
        return asdict(self)


class SAEBenchAdapter(nn.Module):
    """An SAE with the interface that SAEBench expects of custom SAEs.

    Args:
        sae: a trained SAE whose metadata names the hook.
        cutter: knows which tokens are special; None treats no token as special.

    Raises:
        ConfigError: the SAE is a transcoder.
        ModelError: the metadata of the SAE do not name a hook at a layer.
    """

    def __init__(self, sae: SAE[Any], cutter: ContextCutter | None = None) -> None:
        super().__init__()
        check_one_hook(sae)
        metadata = sae.cfg.metadata
        layer = extract_layer_from_tlens_hook_name(metadata.hook_name or "")
        if layer is None:
            raise ModelError(
                f"expected an SAE at a layer, got metadata.hook_name {metadata.hook_name!r}; name a hook of a block"
            )
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
        """Return the decoder of the SAE."""
        return self.sae.W_dec

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:
        """Return the encoder of a pointwise SAE.

        Raises:
            ModelError: the SAE is temporal, so its encoder has no directions in `d_in` to compare.
        """
        if isinstance(self.sae, TemporalEncoder):
            raise ModelError(
                f"expected an encoder (d_in, d_sae), got {tuple(self.sae.W_enc.shape)} of an MTSAE, which reads several scales, for which "
                "SAEBench's weight-based metrics, absorption and autointerp are not defined; set compute_featurewise_weight_based_metrics=False"
            )
        return self.sae.W_enc

    @property
    def device(self) -> torch.device:
        """Return the device of the SAE."""
        return self.sae.device

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the SAE."""
        return self.sae.dtype

    @override
    def to(self, *args: Any, **kwargs: Any) -> SAEBenchAdapter:
        """Move the SAE. `nn.Module.to` is overridden because an SAE records its dtype and device.

        Args:
            *args: device or dtype, as for `nn.Module.to`.
            **kwargs: as for `nn.Module.to`.
        """
        self.sae.to(*args, **kwargs)
        self.cfg.device, self.cfg.dtype = str(self.sae.device), self.sae.cfg.dtype
        return self

    def encode(self, x: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_sae"]:
        """Compute the features of whole sequences.

        Args:
            x: activations of the language model.

        Raises:
            DataError: a temporal SAE got single positions, as from absorption and RAVEL.
        """
        if x.ndim != 3 and isinstance(self.sae, TemporalEncoder):
            raise DataError(
                f"expected whole sequences (batch, pos, {self.cfg.d_in}) for an MTSAE, got single positions of shape {tuple(x.shape)}; use "
                "SAEBench's core and sparse probing, which pass whole sequences"
            )
        return self.sae.encode(self._walled(x))

    def decode(self, feature_acts: Float[Tensor, "batch pos d_sae"]) -> Float[Tensor, "batch pos d_in"]:
        """Compute the reconstruction from feature activations.

        Args:
            feature_acts: feature activations.
        """
        return self.sae.decode(feature_acts)

    def forward(self, x: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        """Compute the reconstruction of activations of the language model.

        Args:
            x: activations of the language model.
        """
        return self.decode(self.encode(x))

    @contextmanager
    def special_tokens_as_walls(self, model: nn.Module) -> Iterator[None]:
        """Return a context in which the rows of special tokens are set to zero before encoding, as in training.

        SAEBench's core does not do this. The tokens are those of the last call of `model.embed`, so the encoded activations must come from
        that forward pass.

        Args:
            model: the language model of the evaluation.
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
                f"expected activations of the last tokens, {tuple(self._tokens.shape)}, got shape {tuple(x.shape)}; encode right after "
                "the forward pass"
            )
        return zero_rows(x, self.cutter.special_positions(self._tokens))
