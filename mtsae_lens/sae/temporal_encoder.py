"""The encoder and decoder that an MTSAE has in training and in inference; `mtsae_lens.sae.mtsae` has the equations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE
from torch import Tensor, nn
from typing_extensions import override

from mtsae_lens.errors import DataError
from mtsae_lens.sae.activation_interface import ACTIVATIONS, Activation
from mtsae_lens.sae.context_rank import join_scales, split_encoder
from mtsae_lens.sae.contexts import as_contexts, as_given
from mtsae_lens.sae.memory import decode_with_memory, run_encoder
from mtsae_lens.sae.parameters import keep_dtypes
from mtsae_lens.sae.saved import WEIGHTS_DIGEST, check_weights, seal_sae
from mtsae_lens.sae.spacing import lag_grid, learned_filters
from mtsae_lens.sae.sparse import apply_encoder, decode_few
from mtsae_lens.sae.temporal import (
    clear_walls,
    find_walls,
    lay_out,
    normalize_scales,
    read_offsets,
    receptive_field,
    sequence_reads,
    tap_offsets,
    temporal_convolution,
)
from mtsae_lens.upstream import flatten_heads, normalize_input, reads_heads, restore_output


class TemporalEncoder(SAE[Any]):
    """What training and inference share: parameters, encoder and folding.

    The number of dimensions says what an input is:

    - 3-D `(batch, pos, d_in)`: whole contexts, each from its position 0 (4-D with heads for `hook_z`);
    - 2-D `(rows, d_in)`: contexts of `cfg.context_size` positions laid end to end, `rows = batch * context_size`.

    A single position is refused, because the encoder needs the positions before it.
    """

    taps: nn.Parameter  # (n_scales, kernel_size, d_in)
    b_enc: nn.Parameter
    W_context: nn.Parameter  # (n_context_scales * d_in, context_rank); only with context_rank
    log2_dilations: nn.Parameter  # (n_scales,); only with learn_dilations
    W_memory_in: nn.Parameter  # (n_memory_reads * d_in, memory_rank); only with memory, as W_memory_out
    W_memory_out: nn.Parameter  # (memory_rank, d_in)

    @property
    def receptive_field(self) -> tuple[int, int]:
        """How many positions before and after the current one the encoder reads."""
        if self.has_memory:
            return self.cfg.context_size - 1, 0
        if self.cfg.learn_dilations:
            return self.cfg.max_lag, 0
        return receptive_field(self.cfg.kernel_size, self.cfg.dilations, self.cfg.padding)

    @property
    def read_offsets(self) -> list[int]:
        """The distinct offsets that the scales read, with 0 first."""
        if self.cfg.learn_dilations:
            return [0, *(-lag for lag in lag_grid(self.cfg.max_lag))]
        return read_offsets(self.cfg.kernel_size, self.cfg.dilations, self.cfg.padding)

    @property
    def dilations(self) -> list[float]:
        """The dilation of every scale, as configured or as learned."""
        if not self.cfg.learn_dilations:
            return [float(dilation) for dilation in self.cfg.dilations]
        learned = (2**self.log2_dilations).clamp(max=self.cfg.max_lag).tolist()  # beyond the grid a tap reads its end
        return [rate if dilation else 0.0 for dilation, rate in zip(self.cfg.dilations, learned, strict=True)]

    @property
    def filters(self) -> Float[Tensor, "n_scales n_reads d_in"]:
        """The filter of each scale over `read_offsets`."""
        cfg, offsets = self.cfg, self.read_offsets
        if cfg.learn_dilations:
            moves = torch.tensor(cfg.dilations, device=self.taps.device) > 0
            return learned_filters(self.taps, self.log2_dilations, [-offset for offset in offsets[1:]], moves)
        return lay_out(self.taps, cfg.dilations, cfg.padding, offsets)

    @property
    def center(self) -> Float[Tensor, " d_in"]:
        """What is subtracted from the input, so that a wall looks like an average token."""
        return self.b_dec * self.cfg.apply_b_dec_to_input

    @property
    def decoded_width(self) -> int:
        """The width of what the decoder gives."""
        return self.cfg.d_in

    def convolve(self, reads: Mapping[int, Float[Tensor, "*row d_in"]]) -> Float[Tensor, "*row n_scales d_in"]:
        """Compute the convolution of every scale, before its norm.

        Args:
            reads: by offset, in the order of `read_offsets`, what is read there, `(..., d_in)`.

        Returns:
            Vectors `(..., n_scales, d_in)`.
        """
        return temporal_convolution(reads, self.filters, self.used_offsets)

    @property
    def used_offsets(self) -> list[list[int]]:
        """For every scale, the offsets that it reads, each once: with dilation 0 all taps share one, and the filter holds their sum."""
        cfg = self.cfg
        if cfg.learn_dilations:
            return [self.read_offsets] * len(cfg.dilations)
        return [list(dict.fromkeys(tap_offsets(cfg.kernel_size, dilation, cfg.padding))) for dilation in cfg.dilations]

    @override
    def get_activation_fn(self) -> Callable[[Tensor], Tensor]:
        return self.activation.function(self.cfg)

    @property
    def activation(self) -> Activation:
        """The activation that the configuration names."""
        return ACTIVATIONS[self.cfg.activation]

    def _activate(self, hidden_pre: Float[Tensor, "*row d_sae"], kept: Bool[Tensor, "*row"]) -> Float[Tensor, "*row d_sae"]:
        """Compute feature activations; those at positions that are not kept are not used."""
        return self.activation.apply(self, hidden_pre)

    @override
    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        """Move or cast the weights as torch does, but let tensors of the activation keep a dtype that they must have."""
        super()._apply(*args, **kwargs)
        keep_dtypes(self)
        return self

    @override
    def process_sae_in(self, sae_in: Tensor) -> Float[Tensor, "batch pos d_in"]:
        """Turn activations at the hook into the encoder's input, centered, zero at walls.

        Overrides the base class because walls must be read between the hook and the normalization, and put back after it.

        Args:
            sae_in: contexts `(batch, pos, d_in)`, with heads for `hook_z`, or rows `(batch * context_size, d_in)`.

        Returns:
            Contexts.

        Raises:
            DataError: complex numbers, another shape or width, or a single position of an encoder that reads earlier ones.
        """
        return self.read_contexts(sae_in)[0]

    def read_contexts(self, sae_in: Tensor) -> tuple[Float[Tensor, "batch pos d_in"], Bool[Tensor, "batch pos"]]:
        """Return what `process_sae_in` returns, and which positions are walls.

        SAELens hands over plain tensors, so here a row of exact zeros is a wall. From here on the mask goes beside the rows.

        Args:
            sae_in: as for `process_sae_in`, with the same errors.
        """
        if sae_in.is_complex():
            raise DataError(f"expected real activations, got {sae_in.dtype}; give their real part (h.real)")
        h = self.hook_sae_input(flatten_heads(self, sae_in.to(self.dtype)))
        h = self._as_contexts(h)
        walls = find_walls(h)
        if self.cfg.skip_first_position:
            walls[:, :1] = True
        x = normalize_input(self, h) - self.center
        return x.masked_fill(walls.unsqueeze(-1), 0.0), walls

    def _as_contexts(self, h: Tensor) -> Float[Tensor, "batch pos d_in"]:
        return as_contexts(h, self.cfg, self.receptive_field)

    def encode_scales(
        self, x: Float[Tensor, "batch pos d_in"], walls: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos n_scales d_in"]:
        """Compute the normalized vector of every scale.

        Args:
            x: contexts from `read_contexts`, `(batch, pos, d_in)`.
            walls: the positions that are walls, from there too.

        Returns:
            Vectors `(batch, pos, n_scales, d_in)`.
        """
        if self.has_memory:
            return self._token_scale(self.code_difference(x, walls))
        reads = sequence_reads(x, walls, self.read_offsets, self.cfg.padding)
        return normalize_scales(self.convolve(reads), x, self.cfg.scale_norm, self.cfg.context_gain)

    @property
    def has_memory(self) -> bool:
        """Whether the decoder predicts from its own past (`mtsae_lens.sae.memory`)."""
        return self.cfg.memory == "predictive"

    def predict(self, past: Float[Tensor, "*row read_d_in"]) -> Float[Tensor, "*row d_in"]:
        """Predict positions from what `Past.read` or `read_past` returned, as differences to `b_dec`."""
        return past @ self.W_memory_in @ self.W_memory_out

    def code_difference(
        self, x: Float[Tensor, "batch pos d_in"], walls: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos d_in"]:
        """Return what the features have to code: `x` itself, or with memory `x_t - p_t` (`run_encoder`), zero at walls.

        Args:
            x: contexts from `read_contexts`, `(batch, pos, d_in)`.
            walls: the positions that are walls, from there too.
        """
        return run_encoder(self, x, walls) if self.has_memory else x

    def encode_token(self, x: Float[Tensor, "*row d_in"], walls: Bool[Tensor, "*row"]) -> Float[Tensor, "*row d_sae"]:
        """Compute the features of positions with an encoder that reads the token alone; no hook is called.

        Args:
            x: centered activations, `(..., d_in)`.
            walls: the positions that are walls.

        Returns:
            Feature activations `(..., d_sae)`.
        """
        hidden_pre = self.encoder_input(self._token_scale(x)) @ self._encoder_weights() + self.b_enc
        return self._activate(hidden_pre, ~walls).masked_fill(walls.unsqueeze(-1), 0.0)

    def _token_scale(self, x: Float[Tensor, "*row d_in"]) -> Float[Tensor, "*row 1 d_in"]:
        return normalize_scales(self.convolve({0: x}), x, self.cfg.scale_norm, self.cfg.context_gain)

    @override
    def decode(self, feature_acts: Tensor) -> Tensor:
        return restore_output(self, self.hook_sae_recons(self._decode(feature_acts)))

    def _decode(self, feature_acts: Tensor) -> Tensor:
        if self.has_memory:
            return decode_with_memory(self, feature_acts)
        return decode_few(feature_acts, self.W_dec) + self.b_dec

    def encoder_input(self, z: Float[Tensor, "*row n_scales d_in"]) -> Float[Tensor, "*row encoder_d_in"]:
        """Compute what `W_enc` multiplies: the scales side by side, or with `context_rank` the first scale and a projection of the others.

        Args:
            z: the vector of every scale, `(..., n_scales, d_in)`.

        Returns:
            The input of the encoder, `(..., n_scales * d_in)` or `(..., d_in + context_rank)`.
        """
        return join_scales(z, self._context_weights)

    def encoder_by_scale(
        self, features: Int[Tensor, " feature"] | slice = slice(None)
    ) -> Float[Tensor, "n_scales d_in feature"]:
        """Return the encoder weights of features as one matrix for each scale; with `context_rank` the product is written out.

        Args:
            features: indices of the features; all of them by default.

        Returns:
            Weights `(n_scales, d_in, feature)`: the pre-activations are `b_enc + sum_k z_k @ weights[k]`.
        """
        return split_encoder(self.W_enc[:, features], self._context_weights, self.cfg.d_in)

    @property
    def _context_weights(self) -> Tensor | None:
        return None if self.cfg.context_rank is None else self.W_context

    def features_from_scales(
        self, z: Float[Tensor, "*row n_scales d_in"], walls: Bool[Tensor, "*row"]
    ) -> tuple[Float[Tensor, "*row d_sae"], Float[Tensor, "*row d_sae"]]:
        """Compute features from the vectors of the scales.

        Args:
            z: the vector of every scale, `(..., n_scales, d_in)`.
            walls: the positions that are walls, `(...)`; no feature is active there.

        Returns:
            Feature activations and pre-activations, both `(..., d_sae)`.
        """
        hidden_pre = self.hook_sae_acts_pre(apply_encoder(self.encoder_input(z), self._encoder_weights(), self.b_enc))
        return self.features_from_pre_activations(hidden_pre, walls), hidden_pre

    def features_from_pre_activations(
        self, hidden_pre: Float[Tensor, "*row d_sae"], walls: Bool[Tensor, "*row"]
    ) -> Float[Tensor, "*row d_sae"]:
        """Compute feature activations, zero at walls.

        Args:
            hidden_pre: pre-activations `(..., d_sae)`.
            walls: the positions that are walls, `(...)`.

        Returns:
            Feature activations `(..., d_sae)`.
        """
        return self.hook_sae_acts_post(clear_walls(self._activate(hidden_pre, ~walls), walls, hidden_pre))

    def _as_given(self, feature_acts: Tensor, h: Tensor) -> Tensor:
        return as_given(feature_acts, h.ndim - reads_heads(self))

    def _encoder_weights(self) -> Float[Tensor, "encoder_d_in d_sae"]:
        return self.W_enc

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        """Fold a scaling of the activations, `h -> s * h`, into the weights; exact for every norm.

        The taps take the factor. `rescaled_layer_norm` also reads the magnitude of the token directly, so `W_enc` takes the factor too.
        `b_dec` is subtracted from the input before the taps, so it is divided by the factor, as in the base class. Pre-activations stay
        as they are, and so do thresholds of the activation.

        Args:
            scaling_factor: the factor s.
        """
        self.taps.data *= scaling_factor
        if self.cfg.scale_norm == "rescaled_layer_norm":
            self.W_enc.data *= scaling_factor
        self.W_dec.data /= scaling_factor
        self.b_dec.data /= scaling_factor
        self.cfg.normalize_activations = "none"

    @override
    def fold_activation_whitening(self, mean: Tensor, whitening_matrix: Tensor, unwhitening_matrix: Tensor) -> None:
        raise NotImplementedError("whitening mixes dimensions, and depth-wise taps cannot absorb that")

    @override
    @torch.no_grad()
    def fold_W_dec_norm(self) -> None:
        """Fold the norms of the decoder rows into the encoder, as SAELens does, and let the activation follow.

        Raises:
            NotImplementedError: the norms differ, and the activation compares features with each other.
        """
        self.activation.scale_features(self, self.get_W_dec_norm())
        super().fold_W_dec_norm()

    @override
    def save_model(self, path: str | Path) -> tuple[Path, Path]:
        """Write the SAE as SAELens does, with digests."""
        written = super().save_model(path)
        seal_sae(Path(path), in_config=True)
        return written

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        """Check the weights that SAELens has read from a file.

        Args:
            state_dict: the weights by name.

        Raises:
            ModelError: the weights are not those that were saved.
        """
        recorded = self.cfg.metadata.__dict__.pop(WEIGHTS_DIGEST, None)  # it would be wrong after the next change of a weight
        if isinstance(recorded, str):
            check_weights(state_dict, recorded)
        super().process_state_dict_for_loading(state_dict)
