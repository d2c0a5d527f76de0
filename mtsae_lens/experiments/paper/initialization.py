"""Measure what an untrained SAE gives, to test whether a standard deviation that falls with dilation, or a steady gradient, is a sign
of learning.

Taps are drawn as `torch.nn.Conv1d` draws them, uniform in +-1/sqrt(kernel_size), so their variance is 1 / (3 kernel_size) and

    E[convolution^2] = sum_j E[r_j^2] / (3 kernel_size)

independently of the correlation in time. With circular padding this is the same for every dilation. With zero padding, larger dilations
read more zeros, and it falls.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mtsae_lens.experiments.paper.measures import finite
from mtsae_lens.experiments.paper.published import SCALE_STD, STD_RATIO, PublishedSettings
from mtsae_lens.experiments.paper.reproduction import build_runner, read_curve
from mtsae_lens.experiments.paper.results import Initialization, NullDistribution, PaperRun, ZeroRateGradients
from mtsae_lens.experiments.paper.setup import PaperSetup
from mtsae_lens.experiments.paper.tap_moments import TapMoments, convolution_std, tap_moments
from mtsae_lens.experiments.parts import as_json
from mtsae_lens.sae.config import MTTrainingSAEConfig
from mtsae_lens.sae.temporal import Padding
from mtsae_lens.training.log import read_log
from mtsae_lens.trials import run_trials

CHANCE_OF_AN_ORDER = 1 / math.factorial(4)  # probability of one order of four deviations, if all orders are equally likely
_DRAWS_AT_ONCE = 250
_NULL_PADDINGS: tuple[Padding, ...] = ("circular", "zero")
_RATIOS_KEPT = 2_000  # enough for a histogram
_ROUNDING = 1e-4  # largest error of a difference of two deviations that are printed with four decimals


def draw_stds(moments: TapMoments, n_draws: int, generator: torch.Generator) -> Float[Tensor, "draw n_scales"]:
    """Draw the taps repeatedly, and return the standard deviation of every scale.

    Args:
        moments: moments of what the taps read.
        n_draws: number of draws.
        generator: source of randomness.
    """
    bound = moments.mean.shape[1] ** -0.5
    stds = []
    for start in range(0, n_draws, _DRAWS_AT_ONCE):
        shape = (min(_DRAWS_AT_ONCE, n_draws - start), *moments.mean.shape)
        taps = (torch.rand(shape, generator=generator) * 2 - 1) * bound
        stds.append(convolution_std(taps.to(moments.mean.device), moments).cpu())
    return torch.cat(stds)


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Return the 95% interval of a share (Wilson 1927).

    Args:
        successes: number of successes.
        n: number of trials.
    """
    z, share = 1.959964, successes / n
    center, spread = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return (center - spread) / (1 + z**2 / n), (center + spread) / (1 + z**2 / n)


def step_evenness(stds: Float[Tensor, "draw n_scales"]) -> Float[Tensor, " draw"]:
    """Return the largest difference of neighboring deviations divided by the smallest, in absolute value: 1 for a straight line.

    Args:
        stds: standard deviations of the scales, for each draw.
    """
    steps = stds.diff(dim=1).abs()
    return steps.amax(dim=1) / steps.amin(dim=1).clamp(min=1e-12)


def published_evenness() -> float:
    """Return the evenness of the paper's four deviations, in the worst case given their rounding."""
    values = list(SCALE_STD.values())
    steps = [abs(later - earlier) for earlier, later in itertools.pairwise(values)]
    return (max(steps) + _ROUNDING) / (min(steps) - _ROUNDING)


def null_distribution(
    x: Float[Tensor, "n pos d_in"],
    masked: Bool[Tensor, "n pos"],
    dilations: Sequence[int],
    kernel_size: int,
    padding: Padding,
    n_draws: int,
    generator: torch.Generator,
) -> NullDistribution:
    """Measure how the standard deviations of untrained taps are ordered on given activations.

    Args:
        x: activations of whole contexts, zero at masked positions.
        masked: the masked positions, which are walls.
        dilations: dilations of the scales.
        kernel_size: taps per scale.
        padding: what a tap reads beyond the ends of a context.
        n_draws: random draws of the taps.
        generator: source of randomness.
    """
    moments = tap_moments(x, masked, dilations, kernel_size, padding)
    stds = draw_stds(moments, n_draws, generator)
    ratios = stds[:, -1] / stds[:, 0]
    monotone = (stds.diff(dim=1) < 0).all(dim=1)
    low, high = wilson_interval(int(monotone.sum()), n_draws)
    expected = (torch.einsum("sjjd->sd", moments.second).mean(dim=-1) / (3 * kernel_size)).sqrt()
    return NullDistribution(
        n_draws=n_draws,
        monotone_share=float(monotone.float().mean()),
        monotone_share_low=low,
        monotone_share_high=high,
        ratios=tuple(round(float(ratio), 5) for ratio in ratios[:_RATIOS_KEPT]),
        ratio_mean=float(ratios.mean()),
        ratio_std=float(ratios.std()),
        share_at_or_below_published=float((ratios <= STD_RATIO).float().mean()),
        share_like_published=float(((ratios <= STD_RATIO) & monotone).float().mean()),
        share_as_even=float((monotone & (step_evenness(stds) <= published_evenness())).float().mean()),
        mean_std={str(d): float(v) for d, v in zip(dilations, stds.mean(dim=0), strict=True)},
        expected_std={str(d): float(v) for d, v in zip(dilations, expected, strict=True)},
    )


def gradients_without_learning(setup: PaperSetup, settings: PublishedSettings, seed: int, n_batches: int) -> ZeroRateGradients:
    """Measure the gradient norms of the paper's run with a learning rate of 0, on the same batches.

    Args:
        setup: model, hook and text.
        settings: settings of the paper.
        seed: seed of the run.
        n_batches: number of batches.
    """
    still = replace(settings, lr=0.0, weight_decay=0.0, training_tokens=n_batches * settings.batch_size_tokens)
    with tempfile.TemporaryDirectory() as folder:
        build_runner(setup, still, seed, Path(folder)).run()
        rows = read_curve(read_log(Path(folder) / "training_log.jsonl"), still)
    norms = [row.grad_norm for row in rows]
    values = torch.tensor(norms, dtype=torch.float64)
    summary = {"mean": float(values.mean()), "std": float(values.std()), "min": min(norms), "max": max(norms)}
    return ZeroRateGradients(grad_norms=tuple(norms), **finite(summary))


def measure_initialization(
    setup: PaperSetup,
    settings: PublishedSettings,
    runs: Sequence[PaperRun],
    *,
    n_draws: int,
    n_contexts: int,
    n_still_batches: int,
    out: Path,
) -> Initialization:
    """Measure table 1 and the gradient of a model that does not learn.

    Args:
        setup: model, hook and text.
        settings: settings of the paper.
        runs: the paper's run, one per seed.
        n_draws: random draws of untrained taps.
        n_contexts: held-out contexts whose activations the taps read.
        n_still_batches: number of batches with a learning rate of 0.
        out: folder of the trials.
    """
    record = setup.record | asdict(settings)
    record |= {"n_draws": n_draws, "n_contexts": n_contexts, "n_still_batches": n_still_batches}
    sae = MTTrainingSAEConfig.paper(2, 2)

    def null(padding: Padding) -> NullDistribution:
        h, masked = setup.activations(setup.test_table(n_contexts).tokens)
        return null_distribution(h, masked, sae.dilations, sae.kernel_size, padding, n_draws, torch.Generator().manual_seed(0))

    trials = {f"null/{padding}": as_json(partial(null, padding)) for padding in _NULL_PADDINGS}
    trials["gradients"] = as_json(partial(gradients_without_learning, setup, settings, 0, n_still_batches))
    found = run_trials(out / "trials", record, trials, "Initialization")
    nulls = {padding: NullDistribution.from_json(found[f"null/{padding}"]) for padding in _NULL_PADDINGS}
    gradients = ZeroRateGradients.from_json(found["gradients"])
    grad_norms = [step.grad_norm for step in runs[0].curve]
    apart = max(abs(a - b) / b for a, b in zip(grad_norms, gradients.grad_norms, strict=False))
    return Initialization(null=nulls, gradients=gradients, gradients_apart=apart)
