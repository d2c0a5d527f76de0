"""Test that shares of time scales are averaged exact contributions, and restrict any score."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.data.token_tables import TokenTable, read_tokens
from mtsae_lens.errors import ConfigError
from mtsae_lens.sae.contributions import scale_contributions
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.splicing import Splice
from mtsae_lens.unlearning.selection.evidence import SelectionEvidence
from mtsae_lens.unlearning.selection.frequency_scores import Frequency
from mtsae_lens.unlearning.selection.scale_scores import FromScales, driven_by

HOOK = "blocks.0.hook_resid_post"


@pytest.fixture(scope="module")
def table(lm: Any, text_file: Path) -> TokenTable:
    return read_tokens(str(text_file), "select", lm.cutter, 6)


def naive(lm: HookedLM, table: TokenTable) -> torch.Tensor:
    """All contributions of all features at once, in float64."""
    features = torch.arange(lm.sae.cfg.d_sae)
    kept = ~lm.masked(table.tokens)
    parts = scale_contributions(lm.sae, lm.sae_input(table.tokens), features)[kept].double()  # type: ignore[arg-type]
    fires = lm.feature_acts(table.tokens)[kept] > 0
    shares = torch.zeros(len(features), parts.shape[1], dtype=torch.float64)
    for feature in features.tolist():
        if fires[:, feature].any():
            lift = parts[fires[:, feature], :, feature].mean(0) - parts[:, :, feature].mean(0)
            shares[feature] = lift / lift.sum() if lift.sum() > 0 else 0
    return shares.float()


def test_shares_are_the_contributions_averaged(lm: Any, table: TokenTable) -> None:
    shares = driven_by(lm, table)
    torch.testing.assert_close(shares, naive(lm, table), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(shares, driven_by(dataclasses.replace(lm, batch_size=1), table), atol=1e-4, rtol=1e-3)
    sums = shares.sum(dim=1)
    assert ((sums - 1).abs() < 1e-5).sum() > 16
    assert (((sums - 1).abs() < 1e-5) | (sums == 0)).all()


def one_scale_lm(lm: Any) -> HookedLM:
    """Feature i reads scale `i % 3` alone."""
    torch.manual_seed(0)
    sae = MTSAE(MTSAEConfig(d_in=32, d_sae=12, k=4, dilations=[0, 1, 4], context_size=32, metadata=SAEMetadata(hook_name=HOOK)))
    for parameter in sae.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    sae.W_enc.data.mul_((torch.arange(96)[:, None] // 32 == torch.arange(12) % 3).float())
    return HookedLM(lm.model, Splice(sae), lm.cutter, batch_size=4)


def test_a_feature_that_reads_one_scale_is_driven_by_it(lm: Any, table: TokenTable) -> None:
    shares = driven_by(one_scale_lm(lm), table)
    fires = shares.sum(dim=1) > 0
    assert fires.sum() > 8
    expected = torch.nn.functional.one_hot(torch.arange(12) % 3, 3).float()
    torch.testing.assert_close(shares[fires], expected[fires], atol=1e-5, rtol=0)


def test_a_score_is_kept_to_features_of_chosen_scales(lm: Any, table: TokenTable, sea_file: Path) -> None:
    planted = one_scale_lm(lm)
    evidence = SelectionEvidence(planted, table, far=(read_tokens(str(sea_file), "select", lm.cutter, 4),))
    score = Frequency(max_retain_rate=1.1)
    whole = score(evidence)
    for dilations, places in (((0,), {0}), ((1, 4), {1, 2}), ((0, 1, 4), {0, 1, 2})):
        restricted = FromScales(score, dilations, min_share=0.9)(evidence)
        for feature in range(12):
            kept = feature % 3 in places
            assert restricted[feature] == (whole[feature] if kept else -torch.inf)
    assert FromScales(score, (1, 4)).name == "frequency from scales 1, 4"
    with pytest.raises(ConfigError, match=r"dilations out of 0, 1, 4, got 2"):
        FromScales(score, (1, 2))(evidence)


def test_an_sae_without_scales_is_refused(lm: Any, table: TokenTable) -> None:
    sae = TopKSAE(TopKSAEConfig(d_in=32, d_sae=12, k=4, metadata=SAEMetadata(hook_name=HOOK)))
    with pytest.raises(ConfigError, match="expected an SAE with time scales"):
        driven_by(dataclasses.replace(lm, splice=Splice(sae)), table)
