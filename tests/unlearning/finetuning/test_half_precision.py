"""Test that a model in half precision is finetuned, yielded and measured in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mtsae_lens.data.token_tables import TokenTable, read_tokens
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.unlearning.attacks import quantize, relearn
from mtsae_lens.unlearning.finetuning import finetune as module
from mtsae_lens.unlearning.finetuning.clones import clone_model
from mtsae_lens.unlearning.finetuning.finetune import FinetuneSettings, finetune
from mtsae_lens.unlearning.finetuning.losses import Amnesiac
from mtsae_lens.unlearning.finetuning.sweeps import LOSSES

SMALL_STEPS = FinetuneSettings(lr=1e-6, n_steps=2, batch_size=2)  # far below half the spacing of most weights in bfloat16


@pytest.fixture(scope="module")
def forget(half_lm: Any, sea_file: Path) -> TokenTable:
    return read_tokens(str(sea_file), "train", half_lm.cutter, 6)


@pytest.fixture(scope="module")
def retain(half_lm: Any, text_file: Path) -> TokenTable:
    return read_tokens(str(text_file), "train", half_lm.cutter, 4)


@pytest.mark.parametrize("name", LOSSES)
def test_small_steps_move_weights(
    name: str, half_lm: Any, forget: TokenTable, retain: TokenTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def share_moved() -> float:
        (snapshot,) = finetune(half_lm.model, LOSSES[name](), forget, [retain], half_lm.cutter, SMALL_STEPS)
        trained = set(LOSSES[name]().trained(half_lm.model))
        matrices = [(n, p) for n, p in snapshot.model.named_parameters() if n in trained and p.ndim > 1 and ".b_" not in n]
        before = dict(half_lm.model.named_parameters())
        return sum((p != before[n]).sum().item() for n, p in matrices) / sum(p.numel() for _, p in matrices)

    in_float32 = share_moved()
    monkeypatch.setattr(module, "clone_to_train", clone_model)
    assert share_moved() < 0.3 * in_float32  # in bfloat16 they are lost in rounding


def test_what_is_subtracted_is_exact(half_lm: Any, forget: TokenTable) -> None:
    settings = FinetuneSettings(1e-3, 2, 2, snapshots=(1, 3))
    once, thrice = (s.model for s in finetune(half_lm.model, Amnesiac(), forget, [], half_lm.cutter, settings))
    start = half_lm.model.blocks[0].mlp.W_in.float()
    change = once.blocks[0].mlp.W_in - start
    assert change.abs().max() > 1e-4
    torch.testing.assert_close(thrice.blocks[0].mlp.W_in - start, 3 * change, atol=1e-6, rtol=0)


def test_relearning_through_an_edit(half_lm: Any, forget: TokenTable, retain: TokenTable) -> None:
    settings = FinetuneSettings(3e-3, 3, 2, snapshots=(0, 3))
    before, after = relearn(half_lm, forget, [forget, retain], settings, edit=FeatureEdit(tuple(range(16)), 2.0))
    assert after.nll[0] < before.nll[0]


def test_rounding_to_few_bits_is_computed_in_float32(half_lm: Any) -> None:
    W = half_lm.model.blocks[0].mlp.W_in
    scale = W.float().abs().amax(dim=0, keepdim=True) / 127
    expected = ((W.float() / scale).round() * scale).bfloat16()
    assert torch.equal(quantize(half_lm.model, 8).blocks[0].mlp.W_in, expected)
    coarse = W.abs().amax(dim=0, keepdim=True) / 127
    assert not torch.equal((W / coarse).round() * coarse, expected)
