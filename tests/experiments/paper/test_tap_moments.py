"""Test the moments of taps against an explicit convolution."""

from typing import get_args

import pytest
import torch

from mtsae_lens.experiments.paper.tap_moments import convolution_mean, convolution_std, scale_statistics, tap_moments
from mtsae_lens.sae.config import MTTrainingSAEConfig
from mtsae_lens.sae.temporal import Padding, find_walls, sequence_reads, tap_offsets
from mtsae_lens.sae.training import MTTrainingSAE

DILATIONS = (1, 2, 4, 8)


@pytest.mark.parametrize("padding", get_args(Padding))
def test_mean_and_deviation_are_those_of_the_convolution(padding: Padding) -> None:
    x = torch.randn(4, 20, 6).cumsum(dim=1) + 1.0
    x[:, 0] = 0.0
    x[1, 9] = 0.0
    taps = torch.randn(1, 4, 3, 6)
    walls = find_walls(x)
    keep = ~walls
    moments = tap_moments(x, walls, DILATIONS, 3, padding)
    for k, dilation in enumerate(DILATIONS):
        offsets = tap_offsets(3, dilation, padding)
        reads = sequence_reads(x, walls, offsets, padding)
        c = torch.stack([reads[o] * taps[0, k, j] for j, o in enumerate(offsets)]).sum(dim=0)[keep]
        assert float(convolution_std(taps, moments)[0, k]) == pytest.approx(float(c.std()), rel=1e-4)
        assert float(convolution_mean(taps, moments)[0, k]) == pytest.approx(float(c.mean()), rel=1e-3, abs=1e-5)


def test_statistics_of_an_sae_are_those_that_its_training_log_holds() -> None:
    sae = MTTrainingSAE(MTTrainingSAEConfig.paper(6, 12, context_size=20))
    h = torch.randn(4, 20, 6)
    h[:, 0] = 0.0
    from sae_lens.saes.sae import TrainStepInput

    step = TrainStepInput(h.flatten(0, 1), {"separation": 0.1, "l1": 0.04}, None, 0, is_logging_step=True)
    logged = sae.training_forward_pass(step).metrics
    for dilation, row in scale_statistics(sae, h).items():
        assert row.std == pytest.approx(float(logged[f"scale_{dilation}_std"]), rel=1e-4)
        assert row.mean == pytest.approx(float(logged[f"scale_{dilation}_mean"]), rel=1e-3, abs=1e-6)
