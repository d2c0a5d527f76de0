"""The threshold of a BatchTopK SAE with memory is searched on enough text, and in the recursion that inference runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from mtsae_lens import MTSAE, MTSAEConfig, MTTrainingSAE, MTTrainingSAEConfig
from mtsae_lens.training import threshold as module
from mtsae_lens.training.threshold import set_threshold_

D_IN, CONTEXT, K = 8, 16, 3


def make_sae() -> MTTrainingSAE:
    cfg = MTTrainingSAEConfig(
        d_in=D_IN, d_sae=24, k=K, context_size=CONTEXT, memory="predictive", memory_rank=4, activation="batchtopk"
    )
    sae = MTTrainingSAE(cfg)
    generator = torch.Generator().manual_seed(0)
    for parameter in sae.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return sae


def parts(n: int, size: float) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    for number in range(n):
        yield torch.randn(8, CONTEXT, D_IN, generator=generator) * (size if number else 1.0)


@pytest.mark.parametrize("flat", [False, True])
def test_the_threshold_is_that_of_all_parts_and_not_of_the_first(monkeypatch: pytest.MonkeyPatch, flat: bool) -> None:
    monkeypatch.setattr(module, "_N_POSITIONS", 6 * 8 * CONTEXT)
    monkeypatch.setattr(module, "_N_AT_ONCE", 2 * 8 * CONTEXT)
    sae, read = make_sae(), []

    def contexts() -> Iterator[torch.Tensor]:
        for part in parts(20, size=4.0):
            read.append(part)
            yield part.flatten(0, 1) if flat else part

    set_threshold_(sae, contexts())
    assert len(read) == 6  # no more than needed
    weights = sae.state_dict()
    sae.process_state_dict_for_saving_inference(weights)
    inference = MTSAE(MTSAEConfig.from_dict(sae.cfg.get_inference_sae_cfg_dict()))
    inference.load_state_dict(weights)
    l0 = [(inference.encode(part) > 0).float().sum(dim=-1).mean().item() for part in read]
    assert sum(l0) / len(l0) == pytest.approx(K, abs=0.3)
    assert l0[0] < 0.7 * K


def test_a_text_that_is_shorter_is_read_once() -> None:
    sae = make_sae()
    before = float(sae.topk_threshold)
    set_threshold_(sae, parts(2, size=1.0))
    assert float(sae.topk_threshold) != before
