"""The MTSAE in training: how it starts and what it minimizes.

    loss = reconstruction + sparsity(e) + separation * sep(z)                             (eq. 4 of the paper)

averaged over the positions that are not walls. The sparsity loss is that of the activation (`mtsae_lens.sae.activations`): L1 for `relu`,
AuxK for `topk` and `batchtopk`, L0 for `jumprelu`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from sae_lens import TrainingSAE
from torch import Tensor, nn
from typing_extensions import override

from mtsae_lens.sae.config import MTTrainingSAEConfig
from mtsae_lens.sae.context_rank import encoder_norms
from mtsae_lens.sae.contexts import check_whole_contexts
from mtsae_lens.sae.gathered import convolve_gathered
from mtsae_lens.sae.hierarchy import readable
from mtsae_lens.sae.memory_training import N_ERRORS, predict_batch, predicted_share, read_memory_batch, remember_errors
from mtsae_lens.sae.parameters import create_parameters
from mtsae_lens.sae.saved import seal_sae
from mtsae_lens.sae.separation import separation_loss
from mtsae_lens.sae.sparse import column_major
from mtsae_lens.sae.temporal import find_walls, normalize_scales, sequence_reads
from mtsae_lens.sae.temporal_encoder import TemporalEncoder
from mtsae_lens.sae.training_step import reconstruct
from mtsae_lens.upstream import TrainCoefficientConfig, TrainStepInput, TrainStepOutput


class MTTrainingSAE(TemporalEncoder, TrainingSAE[MTTrainingSAEConfig]):
    """A Multi-Scale Temporal SAE in training.

    A step computes with the active features alone where that is cheaper (`MTTrainingSAEConfig.training_step`). For that `W_enc` is laid
    out in memory by columns; in files it is laid out by rows.

    A batch is one of two things: rows `(batch * context_size, d_in)`, which are contexts laid end to end, or rows `(row, n_reads * d_in)` from
    `gather_reads`, which hold all that a position reads and can be mixed across contexts. `SequenceSAETrainingRunner` makes the latter.

    SAELens's own `LanguageModelSAETrainingRunner` mixes single positions unless `activations_mixing_fraction=0`. Where contexts begin with
    BOS (`metadata.prepend_bos`) such a batch is recognized and refused; where they do not, it looks like whole contexts.

    Raises:
        DataError: a batch has mixed positions, or contexts of another length.
    """

    @override
    def initialize_weights(self) -> None:
        create_parameters(self)
        cfg = self.cfg
        self.W_enc.data = column_major(self.W_enc.data)
        nn.init.kaiming_uniform_(self.W_dec.data)
        if cfg.decoder_init_norm is not None:
            self.W_dec.data *= cfg.decoder_init_norm / self.W_dec.data.norm(dim=-1, keepdim=True)
        own = 0 if cfg.padding == "causal" else cfg.kernel_size // 2
        if cfg.tap_init == "conv":
            bound = cfg.kernel_size**-0.5  # torch.nn.Conv1d with one input channel per group
            nn.init.uniform_(self.taps.data, -bound, bound)
        else:
            past = range(own, cfg.kernel_size)  # taps from the position's own to the farthest back
            start = {"alike": own, "near": past[min(1, len(past) - 1)], "far": past[-1]}[cfg.tap_init]
            self.taps.data[0, own] = 1.0
            self.taps.data[1:, start] = 1.0
        if self.has_memory:
            self.register_buffer("recent_errors", torch.zeros(N_ERRORS, cfg.d_in, dtype=self.dtype, device=self.device))
        if cfg.context_rank is not None:  # the other factor is zero, and so is the product, but not the gradient
            nn.init.normal_(self.W_context.data, std=len(self.W_context) ** -0.5)  # columns of about unit norm
        self.W_enc.data[: cfg.d_in] = self._start_encoder()  # and the other scales have zeros

    def _start_encoder(self) -> Float[Tensor, "d_in d_sae"]:
        """Return the weights with which the first scale starts: the transpose of the decoder, as in a standard SAE."""
        return self.W_dec.data.T

    @override
    def _encoder_weights(self) -> Tensor:
        """Mask the weights that `hierarchy` does not allow. They start at zero, and stay there because they get no gradient."""
        if self.cfg.hierarchy == "none":
            return self.W_enc
        mask = readable(self.cfg.d_sae, len(self.cfg.dilations)).to(self.W_enc)
        return (self.W_enc.T * mask.repeat_interleave(self.cfg.d_in, dim=0).T).T  # column-major as W_enc is

    @override
    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        return {"separation": self.cfg.separation_coefficient} | self.activation.coefficients(self.cfg)

    @override
    def _activate(self, hidden_pre: Tensor, kept: Tensor) -> Tensor:
        return self.activation.apply_in_training(self, hidden_pre, kept)

    @override
    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        sae_in, walls = self.read_contexts(x)
        feature_acts, hidden_pre = self.features_from_scales(self.encode_scales(sae_in, walls), walls)
        return self._as_given(feature_acts, x), self._as_given(hidden_pre, x)

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """Compute features, reconstruction and losses.

        Overrides the base class because walls do not count in the loss, and because the separation loss needs the scales.

        Args:
            step_input: the batch, and the coefficients, dead features and step number from the trainer.

        Returns:
            Output, weighted losses by name, and metrics to log. After a sparse step `feature_acts` is a sparse matrix (COO) and
            neither it nor `hidden_pre` has a gradient.

        Raises:
            DataError: the batch is not made of whole contexts.
        """
        self.activation.before_training_step(self)
        predicted = None
        if self.has_memory:  # the features code what the prediction leaves, and that is what they are to reconstruct
            read = read_memory_batch(self, step_input.sae_in)
            given, walls, predicted = read.h, read.walls, predict_batch(self, read, step_input.n_training_steps)
            x, sae_in = read.x - predicted, given - predicted
            convolved = self.convolve({0: x})
        else:
            sae_in, x, convolved, walls = self._convolve_batch(step_input.sae_in, step_input.n_training_steps)
            given = sae_in
        keep = ~walls
        if not bool(keep.any()):
            return self._skip_batch(given)
        z = normalize_scales(convolved, x, self.cfg.scale_norm, self.cfg.context_gain)
        kept_rows = keep.flatten()
        of_rows = replace(step_input, sae_in=sae_in)
        encoder_in = self.encoder_input(z).flatten(0, -2)
        reconstruction = reconstruct(self, encoder_in, self._encoder_weights(), ~kept_rows, of_rows)

        squared_error = (reconstruction.prefixes - sae_in).pow(2).sum(dim=-1)[:, kept_rows]
        losses = self._reconstruction_loss(squared_error) | reconstruction.losses
        metrics = reconstruction.metrics
        sae_out = reconstruction.sae_out
        if predicted is not None:
            remember_errors(self, (sae_in - sae_out).detach()[kept_rows])
            metrics["predicted_share"] = predicted_share(x[keep], predicted[keep])
            sae_out = sae_out + predicted
        coefficient = step_input.coefficients["separation"]
        if coefficient or step_input.is_logging_step:
            separation = separation_loss(self.cfg.separation, z, self.filters, keep)
            metrics["separation"] = separation.detach()
            if coefficient:
                losses["separation_loss"] = coefficient * separation
        if step_input.is_logging_step:
            metrics |= self._scale_statistics(convolved.detach()[keep])
        return TrainStepOutput(
            sae_in=given,
            sae_out=sae_out,
            feature_acts=reconstruction.feature_acts,
            hidden_pre=reconstruction.hidden_pre,
            loss=torch.stack(list(losses.values())).sum(),
            losses=losses,
            metrics=metrics,
        )

    def _skip_batch(self, given: Float[Tensor, "row d_out"]) -> TrainStepOutput:
        """Return what a batch of walls alone gives: no feature, and a loss of zero with gradients of zero, because no position counts."""
        none = given.new_zeros(len(given), self.cfg.d_sae)
        loss = torch.stack([(0 * parameter).sum() for parameter in self.parameters()]).sum()
        return TrainStepOutput(
            sae_in=given,
            sae_out=torch.zeros_like(given),
            feature_acts=none,
            hidden_pre=none,
            loss=loss,
            losses={f"{self.cfg.reconstruction_loss}_loss": loss},
            metrics=self.activation.after_training_step(self, none),
        )

    def _reconstruction_loss(self, squared_error: Float[Tensor, "n_groups row"]) -> dict[str, Tensor]:
        if self.cfg.reconstruction_loss == "mse":
            return {"mse_loss": squared_error.mean()}
        return {"l2_loss": squared_error.clamp(min=1e-12).sqrt().mean()}  # the root has no gradient at zero

    def _convolve_batch(self, batch: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the rows to reconstruct, the centered activations of each position, their convolution, and which positions are walls.

        What is read is centered, and zero where nothing can be read.
        """
        offsets, cfg = self.read_offsets, self.cfg
        # an encoder that reads no other position has rows of d_in either way, and no use for contexts
        if batch.ndim == 2 and batch.shape[-1] == len(offsets) * cfg.d_in:
            h = rearrange(batch.to(self.dtype), "row (read d_in) -> row read d_in", d_in=cfg.d_in)
            walls, center = find_walls(h), self.center
            used = [[offsets.index(offset) for offset in own] for own in self.used_offsets]
            convolved = convolve_gathered(h, walls, center, self.filters, used)
            x = (h[:, 0] - center).masked_fill(walls[:, :1], 0.0)
            return h[:, 0], x, convolved, walls[:, 0]
        if step == 0:
            check_whole_contexts(batch, cfg)
        x, walls = self.read_contexts(batch)
        return batch.flatten(0, -2), x, self.convolve(sequence_reads(x, walls, offsets, cfg.padding)), walls

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: Tensor,
        hidden_pre: Tensor,
        sae_out: Tensor,
    ) -> dict[str, Tensor]:
        """Compute the losses of the activation, which the base class does not have. All rows are of positions that are not walls."""
        return self.activation.losses(self, step_input, feature_acts, hidden_pre, sae_out)

    @torch.no_grad()
    def encode_constant(self, h: Float[Tensor, " d_in"]) -> Float[Tensor, " d_sae"]:
        """Compute the pre-activations, without `b_enc`, in a context whose positions are all `h`.

        Args:
            h: activations of one position, `(d_in,)`.

        Returns:
            Pre-activations `(d_sae,)`.
        """
        z = normalize_scales(self.convolve(dict.fromkeys(self.read_offsets, h)), h, self.cfg.scale_norm, self.cfg.context_gain)
        return self.encoder_input(z) @ self._encoder_weights()

    @torch.no_grad()
    def normalize_decoder_(self) -> None:
        """Scale the decoder rows to unit norm, in place."""
        self.W_dec.data /= self.get_W_dec_norm().unsqueeze(-1)

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        super().fold_activation_norm_scaling_factor(scaling_factor)
        if self.has_memory:
            self.recent_errors /= scaling_factor

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        state_dict["W_enc"] = column_major(state_dict["W_enc"])  # files are row-major
        if self.has_memory:  # the folder of a trained SAE lacks what only training needs
            state_dict.setdefault("recent_errors", state_dict["b_dec"].new_zeros(N_ERRORS, self.cfg.d_in))

    @override
    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving(state_dict)
        state_dict["W_enc"] = state_dict["W_enc"].contiguous()

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        self.activation.to_inference(self, state_dict)
        state_dict.pop("recent_errors", None)

    @override
    def save_inference_model(self, path: str | Path) -> tuple[Path, Path]:
        """Write the inference SAE as SAELens does, with digests."""
        written = super().save_inference_model(path)
        seal_sae(Path(path), in_config=True)
        return written

    def _scale_statistics(self, convolved: Tensor) -> dict[str, Tensor | float]:
        """Compute mean and standard deviation of each scale's convolution (table 1 of the paper), and the norm of its encoder weights."""
        norms = encoder_norms(self.W_enc, self._context_weights, self.cfg.d_in)
        statistics: dict[str, Tensor | float] = {}
        for scale, dilation in enumerate(self.cfg.dilations):
            statistics[f"scale_{dilation}_mean"] = convolved[:, scale].mean()
            statistics[f"scale_{dilation}_std"] = convolved[:, scale].std()
            statistics[f"scale_{dilation}_encoder_norm"] = norms[scale]
            if self.cfg.learn_dilations:
                statistics[f"scale_{dilation}_learned_dilation"] = self.dilations[scale]
        return statistics
