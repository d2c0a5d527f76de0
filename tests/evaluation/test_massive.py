"""Explained variance without massive activations, against the formula on the rows themselves."""

from __future__ import annotations

import math

import pytest
import torch

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.evaluation.massive import explain_without_massive

BATCH, POS, D_IN = 4, 10, 6


def make_sae() -> MTSAE:
    sae = MTSAE(MTSAEConfig(d_in=D_IN, d_sae=12, k=3, context_size=POS))
    generator = torch.Generator().manual_seed(0)
    for parameter in sae.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return sae


@pytest.mark.parametrize("n_massive", [0, 2])
def test_it_is_that_of_the_other_rows(n_massive: int) -> None:
    h = torch.randn(BATCH, POS, D_IN, generator=torch.Generator().manual_seed(1)) + 2
    for number in range(n_massive):
        h[number, 3] *= 100
    counted = torch.ones(BATCH, POS, dtype=torch.bool)
    counted[:, 0] = False
    sae = make_sae()
    explained, found = explain_without_massive(sae, [(h[:2], counted[:2]), (h[2:], counted[2:])])
    assert found == n_massive

    kept = counted.clone()
    kept[:n_massive, 3] = False
    out = sae(h.masked_fill(~counted.unsqueeze(-1), 0.0))[kept]
    x = h[kept]
    expected = 1 - (x - out).pow(2).sum() / (x - x.mean(dim=0)).pow(2).sum()
    assert explained == pytest.approx(expected.item(), abs=1e-5)


def test_nothing_to_explain() -> None:
    explained, found = explain_without_massive(make_sae(), [(torch.ones(1, POS, D_IN), torch.zeros(1, POS, dtype=torch.bool))])
    assert found == 0
    assert math.isnan(explained)
