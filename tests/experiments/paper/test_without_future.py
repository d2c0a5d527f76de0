"""Test that an SAE without the future reads no later position, and is otherwise unchanged."""

from typing import Any

import pytest
import torch

from mtsae_lens.errors import ConfigError
from mtsae_lens.evaluation.fidelity import future_leak
from mtsae_lens.experiments.paper.setup import PaperSetup
from mtsae_lens.experiments.paper.without_future import without_future
from mtsae_lens.sae.config import MTTrainingSAEConfig
from mtsae_lens.sae.training import MTTrainingSAE


@pytest.fixture
def sae() -> MTTrainingSAE:
    sae = MTTrainingSAE(MTTrainingSAEConfig.paper(32, 64, context_size=32))
    sae.W_enc.data.normal_(std=0.2)
    sae.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    return sae


def test_it_reads_no_future(sae: Any, setup: PaperSetup) -> None:
    tokens = setup.test_table(4).tokens
    assert future_leak(sae, setup.model, tokens) > 0.05
    assert future_leak(without_future(sae, "withhold"), setup.model, tokens) == 0


def test_replaced_positions_are_those_of_another_context(sae: Any) -> None:
    h = torch.randn(3, 32, 32)
    blind = without_future(sae, "replace")
    changed = h.clone()
    changed[0, 20:] = 0.3  # context 1 reads the later positions of context 0, and context 0 its own past alone
    before, after = blind.encode(h), blind.encode(changed)
    assert torch.equal(before[0, :20], after[0, :20])
    assert not torch.equal(before[1, :20], after[1, :20])


def test_a_causal_sae_loses_nothing(setup: PaperSetup) -> None:
    sae = MTTrainingSAE(MTTrainingSAEConfig.paper(32, 64, context_size=32, padding="causal"))
    sae.W_enc.data.normal_(std=0.2)
    h = torch.randn(3, 32, 32)
    for future in ("withhold", "replace"):
        torch.testing.assert_close(without_future(sae, future).encode(h), sae.encode(h))  # type: ignore[arg-type]


def test_it_knows_two_ways(sae: Any) -> None:
    with pytest.raises(ConfigError, match=r"'withhold', 'replace', got 'hide'"):
        without_future(sae, "hide")  # type: ignore[arg-type]
