"""Set the start of training: the scale of the activations, and `b_dec` at their mean.

    s = sqrt(d_in) / E ||h||                          as SAELens's `expected_average_only_in`
    b_dec = s E h                                     in the units that the SAE is trained in

With `b_dec` at zero the encoder reads `h` itself. In a model with outlier dimensions (a few dimensions with a huge constant mean, as in
Gemma) `E h` is several times as long as the deviations from it, so at the start all tokens choose the same top-k features, and no
others ever receive a gradient: the SAE collapses. With `b_dec` at the mean the encoder reads the deviations. The mean is used rather
than the geometric median, because it is the constant that minimizes the squared error, needs one pass, and was no worse where single
tokens are outliers (`examples/benchmarks/outlier_dimensions.py`).

An SAE that has been trained keeps its weights, and the scale that is folded into it (`restore_scale_`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import TrainingSAE
from torch import Tensor

from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.ranks import current_ranks
from mtsae_lens.sae.memory_training import read_memory_batch
from mtsae_lens.sae.training import MTTrainingSAE

_LEAST_NORM, _GREATEST_NORM = 1e-12, 1e12  # squares of these, and sums of them, are safe in float32
_NORM_TOLERANCE = 1e-4  # relative: rows that were all scaled to one norm differ by less
_LEAST_VARIATION = 1e-6  # of the mean's norm: below it float32 resolves no difference between two rows


@dataclass(frozen=True, eq=False)
class RowStatistics:
    """Moments of the activations of the first batches, of all ranks together."""

    n_rows: int
    """Number of rows."""
    mean: Float[Tensor, " d_in"]
    """Their mean."""
    mean_norm: float
    """The mean of their norms."""

    @classmethod
    def of(cls, batches: Sequence[Float[Tensor, "row width"]], d_in: int) -> RowStatistics:
        """Measure the activations of rows.

        Args:
            batches: rows whose first `d_in` numbers are the activations of a position; no position is masked (`SequenceBlocks.mixed`).
            d_in: width of the activations.

        Returns:
            Number of rows, their mean, and the mean of their norms.

        Raises:
            DataError: there are no rows, or activations that are not finite, too small or too large for float32, or all the same.
        """
        ranks = current_ranks()
        rows = [batch[:, :d_in].contiguous() for batch in batches]  # so that rounding is the same for rows of every width
        n_rows = int(ranks.sum_(torch.tensor(sum(len(h) for h in rows))))
        if not n_rows:
            raise DataError(
                "expected activations to train on, got none: every position is masked; give text that holds more than special tokens"
            )
        if not all(torch.isfinite(h).all() for h in rows):
            raise DataError("expected finite activations, got NaN or infinity; check the model and the text they come from")
        norm = sum(h.norm(dim=-1).float().sum().item() for h in rows)
        mean_norm = ranks.sum_(torch.tensor(norm, dtype=torch.float64)).item() / n_rows
        if not _LEAST_NORM < mean_norm < _GREATEST_NORM:
            raise DataError(
                f"expected activations with a mean norm from {_LEAST_NORM:g} to {_GREATEST_NORM:g}, got {mean_norm:.3g}, which float32 "
                "cannot square; rescale the activations or choose another hook"
            )
        doubles = [h.cpu().double() for h in rows]  # some devices lack float64
        mean = ranks.sum_(torch.stack([h.sum(dim=0) for h in doubles]).sum(dim=0)) / n_rows
        deviation = sum((h - mean).pow(2).sum().item() for h in doubles)
        variance = ranks.sum_(torch.tensor(deviation, dtype=torch.float64)).item() / n_rows
        if n_rows > 1 and variance <= (_LEAST_VARIATION * mean.norm().item()) ** 2:
            raise DataError(
                f"expected activations that vary, got {n_rows:,} rows that are all the same; choose another hook, or text that is not one "
                "token repeated"
            )
        return cls(n_rows, mean.to(rows[0]), mean_norm)


def look_ahead(batches: Iterator[Tensor], n_batches: int, d_in: int) -> tuple[RowStatistics, Iterator[Tensor]]:
    """Measure the first batches without using them up.

    Args:
        batches: the batches that training will read.
        n_batches: how many to measure, and to keep in memory until training has read them.
        d_in: width of the activations.

    Returns:
        The statistics, and an iterator over all batches, those that were measured included. Nothing is read twice.

    Raises:
        DataError: the activations cannot be trained on (`RowStatistics.of`).
    """
    first = list(islice(batches, n_batches))
    statistics = RowStatistics.of(first, d_in)

    def again() -> Iterator[Tensor]:
        while first:
            yield first.pop(0)  # so that it can be freed
        yield from batches

    return statistics, again()


@torch.no_grad()
def start_b_dec_(sae: TrainingSAE[Any], mean: Float[Tensor, " d_in"]) -> None:
    """Set `b_dec` of a new SAE to the mean of its input, in place; an SAE whose `b_dec` is not zero is left unchanged.

    With `apply_b_dec_to_input=False` the encoder reads the mean as well. Its biases then subtract the response of the encoder to the
    mean, so that training starts at the same pre-activations.

    Args:
        sae: an SAE of any architecture.
        mean: mean of the activations, scaled as in training, `(d_in,)`.
    """
    if sae.b_dec.shape != mean.shape or sae.b_dec.any():
        return
    mean = mean.to(sae.b_dec)
    sae.b_dec.copy_(mean)
    if sae.cfg.apply_b_dec_to_input:
        return
    response = sae.encode_constant(mean) if isinstance(sae, MTTrainingSAE) else mean @ sae.W_enc
    for name in ("b_enc", "b_gate", "b_mag"):  # a gated SAE has the last two
        if isinstance(bias := getattr(sae, name, None), Tensor):
            bias -= response


@torch.no_grad()
def restore_scale_(sae: MTTrainingSAE) -> float | None:
    """Take the scale of the activations out of a trained SAE again, in place, so that the rows of its decoder have unit norm.

        s = 1 / n,   taps = n taps,   W_dec = W_dec / n,   b_dec = b_dec / n           with n the norm of the decoder rows

    Training ends with the scale folded into the weights (`fold_activation_norm_scaling_factor`). `normalize_decoder` would then shorten the
    rows in the first step and leave the encoder as it is. In the old units learning rate, coefficients and bandwidths also mean what they
    meant before. Rows of different norms have no common scale; their norms are folded into the encoder. All of this is exact. A new SAE,
    with a `b_dec` of zero, is left unchanged.

    Args:
        sae: the SAE.

    Returns:
        The scale s with which the activations are to be multiplied from now on; None if the activations stay as they are.

    Raises:
        ConfigError: the norms differ, and the activation compares features with each other.
    """
    cfg = sae.cfg
    if not cfg.normalize_decoder or cfg.normalize_activations != "none" or not sae.b_dec.any():
        return None
    norms = sae.W_dec.float().norm(dim=-1)
    tolerance = max(_NORM_TOLERANCE, 2 * torch.finfo(sae.W_dec.dtype).eps)
    n = norms.mean().item()
    if norms.max() - norms.min() > tolerance * n:
        try:
            sae.fold_W_dec_norm()
        except NotImplementedError as error:
            raise ConfigError(
                f"expected decoder rows of the same norm to train an SAE with activation={cfg.activation!r} and normalize_decoder=True "
                f"further, got norms from {norms.min():.4g} to {norms.max():.4g}; set sae.cfg.normalize_decoder = False"
            ) from error
        return None
    if abs(n - 1) <= tolerance:
        return None
    sae.fold_activation_norm_scaling_factor(n)
    cfg.normalize_activations = "expected_average_only_in"
    return 1 / n


_MEMORY_RIDGE = 0.5
"""Ridge penalty of the first prediction, in mean squared regressors, for as many weights as rows; with fewer rows it grows."""


@torch.no_grad()
def start_memory_(sae: MTTrainingSAE, batches: Sequence[Float[Tensor, "row d_in"]]) -> None:
    """Set the prediction of a new SAE with memory to the best linear one of its rank, in place, with the activations as their own past.

        min_P  sum_t ||x_t - past_t P||^2 + ridge ||P||^2,        then P V V' with V the first directions of what is predicted

    (reduced-rank regression, Izenman 1975). A prediction that is not zero is left unchanged.

    Args:
        sae: the SAE; its `b_dec` has been set.
        batches: as in training, scaled.
    """
    if sae.W_memory_in.any():
        return
    width = sae.cfg.n_memory_reads * sae.cfg.d_in
    gram, cross, n_rows = torch.zeros(width, width), torch.zeros(width, sae.cfg.d_in), 0
    for batch in batches:
        read = read_memory_batch(sae, batch)
        kept, own = ~read.walls, read.x - sae.b_dec * (not sae.cfg.apply_b_dec_to_input)
        past, r = read.past.flatten(1)[kept].cpu().float(), own[kept].cpu().float()
        gram += past.T @ past
        n_rows += len(past)
        cross += past.T @ r
    ridge = _MEMORY_RIDGE * width / max(n_rows, 1) * gram.diagonal().mean().clamp(min=1e-12)
    weights = torch.linalg.solve(gram + ridge * torch.eye(width), cross)
    predicted = weights.T @ gram @ weights  # second moments of the predictions
    directions = torch.linalg.eigh(predicted).eigenvectors.flip(-1)[:, : sae.W_memory_out.shape[0]]
    sae.W_memory_in.copy_(weights @ directions)
    sae.W_memory_out.copy_(directions.T)
