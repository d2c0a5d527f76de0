"""Test the adapter against the operations of SAEBench's functions; sae-bench needs a separate environment and is not imported here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sae_lens import TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata
from torch import Tensor

from mtsae_lens.errors import DataError, ModelError
from mtsae_lens.interop.saebench import SAEBenchAdapter
from mtsae_lens.splice.hooked_lm import HookedLM

HOOK = "blocks.0.hook_resid_post"


@pytest.fixture
def adapter(lm: HookedLM) -> SAEBenchAdapter:
    return SAEBenchAdapter(lm.sae, lm.cutter)


@pytest.fixture
def tokens(lm: HookedLM) -> Tensor:
    tokens = torch.randint(5, 4096, (3, 32), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = tokens[1, 9] = tokens[2, 20] = int(lm.cutter.special_token_ids[0])
    return tokens


def pointwise() -> TopKSAE:
    sae = TopKSAE(TopKSAEConfig(d_in=8, d_sae=16, k=4, metadata=SAEMetadata(hook_name="blocks.2.hook_resid_pre")))
    sae.W_enc.data = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    return sae


@torch.no_grad()
def test_core_sees_special_tokens_as_walls(adapter: SAEBenchAdapter, lm: HookedLM, tokens: Tensor) -> None:
    """As core calls it: the model with a cache, then `encode` of what is in it."""
    expected = lm.feature_acts(tokens)
    with adapter.special_tokens_as_walls(lm.model):
        _, cache = lm.model.run_with_cache(tokens, prepend_bos=False, names_filter=[HOOK], stop_at_layer=1)
        got = adapter.encode(cache[HOOK])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    bare = adapter.encode(cache[HOOK])
    assert not torch.allclose(bare, expected, atol=1e-3)  # a special token inside is read by its neighbours


@torch.no_grad()
def test_position_0_is_a_wall_without_a_special_token_too(adapter: SAEBenchAdapter, lm: HookedLM, tokens: Tensor) -> None:
    tokens[:, 0] = 7
    with adapter.special_tokens_as_walls(lm.model):
        _, cache = lm.model.run_with_cache(tokens, prepend_bos=False, names_filter=[HOOK], stop_at_layer=1)
        torch.testing.assert_close(adapter.encode(cache[HOOK]), lm.feature_acts(tokens), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_core_replaces_inside_the_forward_pass(adapter: SAEBenchAdapter, lm: HookedLM, tokens: Tensor) -> None:
    seen = []

    def replacement(h: Tensor, hook: Any) -> Tensor:
        seen.append(adapter.encode(h))
        return adapter.decode(seen[-1])

    with adapter.special_tokens_as_walls(lm.model):
        lm.model.run_with_hooks(tokens, fwd_hooks=[(HOOK, replacement)], prepend_bos=False)
    torch.testing.assert_close(seen[0], lm.feature_acts(tokens), atol=1e-5, rtol=1e-5)


def test_tokens_of_another_pass_are_refused(adapter: SAEBenchAdapter, lm: HookedLM, tokens: Tensor) -> None:
    with adapter.special_tokens_as_walls(lm.model):
        lm.model(tokens, prepend_bos=False)
        with pytest.raises(DataError, match="expected activations of the last tokens"):
            adapter.encode(torch.zeros(2, 32, 32))
    assert not lm.model.embed._forward_pre_hooks
    adapter.encode(torch.zeros(2, 32, 32))


@torch.no_grad()
def test_probing_hands_over_zeros_in_their_place(adapter: SAEBenchAdapter, lm: HookedLM, tokens: Tensor) -> None:
    """As sparse probing calls it: activations collected before, special tokens multiplied by zero, batch by batch."""
    h = lm.activations(tokens) * ~lm.cutter.special_positions(tokens).unsqueeze(-1)
    parts = torch.cat([adapter.encode(part) for part in h.split(2)])
    torch.testing.assert_close(parts, lm.feature_acts(tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(5, 32), (64, 32), (32,)])
def test_single_positions_are_refused(adapter: SAEBenchAdapter, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="core and sparse probing"):
        adapter.encode(torch.zeros(shape))


def test_what_compares_the_encoder_is_refused(adapter: SAEBenchAdapter) -> None:
    with pytest.raises(ModelError, match="weight-based"):
        adapter.W_enc.norm()


def test_a_pointwise_sae_takes_everything() -> None:
    sae = pointwise()
    adapter = SAEBenchAdapter(sae)
    assert adapter.W_enc is sae.W_enc
    assert adapter.encode(torch.randn(5, 8)).shape == (5, 16)
    assert adapter(torch.randn(2, 5, 8)).shape == (2, 5, 8)


def test_moving_it_moves_what_the_sae_notes() -> None:
    adapter = SAEBenchAdapter(pointwise())
    assert adapter.dtype == torch.float32
    moved = adapter.to(device="cpu", dtype=torch.float64)
    assert moved is adapter
    assert moved.dtype == moved.W_dec.dtype == torch.float64
    assert moved(torch.randn(2, 5, 8)).dtype == torch.float64


def test_the_config_is_flat(adapter: SAEBenchAdapter, lm: HookedLM) -> None:
    cfg = adapter.cfg
    assert (cfg.hook_name, cfg.hook_layer, cfg.hook_head_index, cfg.d_in, cfg.d_sae) == (HOOK, 0, None, 32, 32)
    assert cfg.to_dict()["architecture"] == "mtsae"
    assert SAEBenchAdapter(pointwise()).cfg.hook_layer == 2
    nowhere = TopKSAE(TopKSAEConfig(d_in=8, d_sae=16, k=4))
    with pytest.raises(ModelError, match="hook_name"):
        SAEBenchAdapter(nowhere)
