"""Train any architecture on any blocks of sequences; the runner calls this once it has a model and text."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from sae_lens import LoggingConfig, TrainingSAE
from torch import Tensor

from mtsae_lens.data.blocks import SequenceBlocks, gather_tokens
from mtsae_lens.data.context_blocks import ContextBlocks
from mtsae_lens.data.masks import zero_rows
from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.ranks import current_ranks
from mtsae_lens.sae.memory import gather_past
from mtsae_lens.sae.temporal import find_walls, gather_reads
from mtsae_lens.sae.training import MTTrainingSAE
from mtsae_lens.sae.transcoder import MTTrainingTranscoder
from mtsae_lens.training.options import TrainerOptions
from mtsae_lens.training.threshold import needs_threshold, set_threshold_
from mtsae_lens.training.trainer import Batches, SequenceSAETrainer
from mtsae_lens.upstream import SAETrainerConfig


def batches_for(sae: TrainingSAE[Any], stream: SequenceBlocks, max_norm_multiple: float | None = None) -> Batches:
    """Choose the batches for an SAE: rows of the same blocks in the same order for every architecture.

    Args:
        sae: the SAE to train.
        stream: the blocks.
        max_norm_multiple: as in `SequenceBlocks.mixed`.

    Returns:
        A function that iterates over batches from a step on. A row holds the activations of a position, and for an MTSAE also those at
        every other offset that it reads. That of an SAE with memory holds its past (`gather_past`), and that of a transcoder, at its end, the
        activations of the hook that is decoded.
    """
    if isinstance(sae, MTTrainingTranscoder):
        widths = sae.cfg.d_in, sae.cfg.d_out
        return partial(stream.mixed, gather=partial(gather_pairs, sae), max_norm_multiple=max_norm_multiple, widths=widths)
    gather = partial(_gather_reads if isinstance(sae, MTTrainingSAE) else _gather_tokens, sae)
    return partial(stream.mixed, gather=gather, max_norm_multiple=max_norm_multiple)


def _gather_tokens(
    sae: TrainingSAE[Any], h: Float[Tensor, "batch pos d_in"], masked: Bool[Tensor, "batch pos"]
) -> Callable[[Tensor], Tensor]:
    if h.shape[-1] != sae.cfg.d_in:  # rows of width 1 would be broadcast
        raise DataError(f"expected activations of width d_in={sae.cfg.d_in}, got {h.shape[-1]}; make them equal")
    return gather_tokens(h, masked)


def _gather_reads(
    sae: Any, h: Float[Tensor, "batch pos d_in"], masked: Bool[Tensor, "batch pos"]
) -> Callable[[Tensor], Tensor]:
    expected = (sae.cfg.context_size, sae.cfg.d_in)
    if tuple(h.shape[1:]) != expected:
        raise DataError(
            f"expected contexts of shape (context_size, d_in) = {expected}, got {tuple(h.shape[1:])}; make them equal"
        )
    # SAELens hands over plain tensors, in which a row of exact zeros is a wall, so it is one in training too
    walls = masked | find_walls(h)
    if sae.has_memory:
        return gather_past(zero_rows(h, walls), walls, sae.cfg.memory_lags, sae.cfg.memory_decays)
    return gather_reads(h, walls, sae.read_offsets, sae.cfg.padding)


def gather_pairs(
    sae: MTTrainingTranscoder, h: Float[Tensor, "batch pos both_d"], masked: Bool[Tensor, "batch pos"]
) -> Callable[[Tensor], Float[Tensor, "row width"]]:
    """Return a function that gathers, for positions of contexts, what a transcoder reads there and the activations that it decodes.

    Args:
        sae: the transcoder.
        h: contexts with the activations of both hooks side by side.
        masked: the masked positions.

    Returns:
        A function from flat positions to rows.

    Raises:
        DataError: the contexts have another length, or the hooks another width.
    """
    d_in, d_out = sae.cfg.d_in, sae.cfg.d_out
    if h.shape[-1] != d_in + d_out:
        raise DataError(
            f"expected the activations of two hooks side by side, d_in + d_out = {d_in} + {d_out}, got width {h.shape[-1]}; give "
            "torch.cat([x, y], dim=-1)"
        )
    read, decoded = _gather_reads(sae, h[..., :d_in], masked), gather_tokens(h[..., d_in:], masked)
    return lambda rows: torch.cat([read(rows), decoded(rows)], dim=-1)


_make_config = partial(
    SAETrainerConfig,
    n_checkpoints=0,
    checkpoint_path=None,
    save_final_checkpoint=False,
    autocast=False,
    lr_scheduler_name="cosineannealing",
    adam_beta1=0.9,
    adam_beta2=0.999,
    lr_decay_steps=0,
    n_restart_cycles=1,
    feature_sampling_window=2000,
    n_batches_for_norm_estimate=20,
)
"""Make SAELens's configuration of a training; what is set here is the same in every one."""


def fit(
    sae: TrainingSAE[Any],
    stream: SequenceBlocks,
    *,
    n_steps: int,
    batch_size_tokens: int,
    lr: float,
    lr_warm_up_steps: int = 0,
    lr_end: float = 0.0,
    dead_feature_window: int = 300,
    options: TrainerOptions | None = None,
) -> TrainingSAE[Any]:
    """Train with AdamW and a cosine schedule. The SAE is changed in place, with its activation scale folded in.

    Args:
        sae: an SAE of any architecture that SAELens registers.
        stream: blocks of contexts. Position 0 must be masked too, unless the SAE has `skip_first_position=False`: otherwise it would be
            trained on but not used.
        n_steps: number of updates, warm-up included.
        batch_size_tokens: positions in a batch of the stream, masked ones included.
        lr: peak learning rate.
        lr_warm_up_steps: updates over which the rate rises from zero; may be more than `n_steps`.
        lr_end: learning rate at the end of the cosine.
        dead_feature_window: updates without firing after which a feature counts as dead; at most a third of `n_steps`.
        options: weight decay, start of `b_dec`, logging and checkpoints.

    Returns:
        The SAE.

    Raises:
        ConfigError: several ranks were to train on blocks that each of them holds whole.
        DataError: the contexts have another length or width than the SAE reads, the activations cannot be trained on (all masked, all the
            same, not finite), or the loss is not finite.
    """
    if not current_ranks().is_alone and not isinstance(stream, ContextBlocks):
        raise ConfigError(
            f"expected one process for blocks that are in memory, got {current_ranks().size} ranks; call fit outside joined_ranks"
        )
    cfg = _make_config(
        total_training_samples=n_steps * batch_size_tokens,
        device=str(sae.device),
        lr=lr,
        lr_end=lr_end,
        lr_warm_up_steps=lr_warm_up_steps,
        train_batch_size_samples=batch_size_tokens,
        dead_feature_window=dead_feature_window,
        logger=LoggingConfig(log_to_wandb=False),
    )
    options = options or TrainerOptions(log_every_n_steps=100)
    waits = stream.waits if isinstance(stream, ContextBlocks) else None
    SequenceSAETrainer(cfg, sae, batches_for(sae, stream, options.max_norm_multiple), options, waits=waits).fit()
    if needs_threshold(sae):
        set_threshold_(sae, stream.sequences())
    return sae
