"""What several ranks must agree on in a training step: gradients, what an SAE keeps besides its weights, counts, and rows of the log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from sae_lens import TrainingSAE
from torch import Tensor

from mtsae_lens.ranks import current_ranks
from mtsae_lens.sae.entries import firing_counts_of


@torch.no_grad()
def add_up_step_(sae: TrainingSAE[Any], share: float) -> None:
    """Add up the gradients of all ranks, and average what the SAE keeps besides its weights, such as the threshold of a batch top-k.

    Args:
        sae: the SAE, after the backward pass of a loss that was multiplied by `share`.
        share: this rank's part of the rows of the step.
    """
    ranks = current_ranks()
    if ranks.is_alone:
        return
    ranks.sum_gradients_(sae.parameters())
    for buffer in sae.buffers():
        if buffer.is_floating_point():
            buffer.copy_(ranks.sum_(buffer * share))


def sum_firing_counts(feature_acts: Float[Tensor, "row d_sae"]) -> tuple[Int[Tensor, " d_sae"], int]:
    """Add up over the ranks how often each feature is active.

    Args:
        feature_acts: feature activations of this rank.

    Returns:
        The counts of all ranks `(d_sae,)`, and the number of their rows.
    """
    counts = firing_counts_of(feature_acts)
    of_all = current_ranks().sum_(torch.cat([counts, counts.new_tensor([len(feature_acts)])]))
    return of_all[:-1], int(of_all[-1])


@torch.no_grad()
def mean_log_row(
    row: Mapping[str, Any], sae_in: Float[Tensor, "row d_in"], sae_out: Float[Tensor, "row d_in"], share: float
) -> dict[str, Any]:
    """Average a row of the training log over the ranks, so that losses, L0 and explained variance are those of all rows of the step.

    Standard deviations, and measures that are no means over rows, become the mean of those of the ranks.

    Args:
        row: the row of this rank.
        sae_in: its activations.
        sae_out: their reconstructions.
        share: its part of the rows of the step.
    """
    ranks = current_ranks()
    if ranks.is_alone:
        return dict(row)
    means = ranks.mean_row(row, share)
    mean = ranks.sum_(sae_in.double().mean(dim=0) * share)
    squares = torch.stack([(sae_in - other).double().pow(2).sum(dim=-1).mean() for other in (sae_out, mean)])
    error, variance = ranks.sum_(squares * share).tolist()
    return means | {"metrics/explained_variance": 1 - error / variance if variance else float("nan")}
