"""Test that a flipped bit of an SAE is detected by our loader, and by SAELens's loader for our class, and that older SAEs load."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, TopKSAE, TopKSAEConfig
from safetensors.torch import load_file, save_file

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.errors import ModelError
from mtsae_lens.opening import load_sae
from mtsae_lens.sae.saved import check_sae, seal_sae

WEIGHTS, CFG = "sae_weights.safetensors", "cfg.json"


def save_mtsae(folder: Path) -> Path:
    torch.manual_seed(0)
    sae = MTSAE(MTSAEConfig(d_in=8, d_sae=16, k=4))
    for parameter in sae.parameters():
        parameter.data.normal_()
    sae.save_model(folder)
    return folder


def save_topk(folder: Path) -> Path:
    sae = TopKSAE(TopKSAEConfig(d_in=8, d_sae=16, k=4))
    sae.W_enc.data.normal_()
    sae.save_model(folder)
    seal_sae(folder)
    return folder


def flip(path: Path, place: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("save", [save_mtsae, save_topk])
def test_a_flipped_bit_of_the_weights(save: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = save(tmp_path)
    load_sae(folder)
    flip(folder / WEIGHTS)
    with pytest.raises(ModelError, match=r"^[^\n]*SHA-256[^\n]*damaged[^\n]*; copy the folder again, or train the SAE again$"):
        load_sae(folder)


@pytest.mark.parametrize("save", [save_mtsae, save_topk])
def test_another_setting(save: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = save(tmp_path)
    cfg = json.loads((folder / CFG).read_text())
    for harmless in ({"metadata": cfg["metadata"] | {"model_name": "elsewhere"}}, {"device": "cpu"}):
        (folder / CFG).write_text(json.dumps(cfg | harmless))
        load_sae(folder)
    (folder / CFG).write_text(json.dumps(cfg | {"k": 5}))
    with pytest.raises(
        ModelError,
        match=r"cfg\.json: expected the settings that were saved with the weights, got others; copy the folder again",
    ):
        load_sae(folder)
    SAE.load_from_disk(folder).save_model(folder)  # as the error says
    assert load_sae(folder).cfg.k == 5


def test_the_loader_of_saelens_checks_our_class(tmp_path: Path) -> None:
    folder = save_mtsae(tmp_path)
    for load in (SAE.load_from_disk, MTSAE.load_from_disk):
        assert "weights_sha256" not in load(folder).cfg.metadata
    for dtype in ("bfloat16", "float64"):  # cast weights have other bytes
        SAE.load_from_disk(folder, dtype=dtype)
    flip(folder / WEIGHTS)
    for load in (SAE.load_from_disk, MTSAE.load_from_disk):
        with pytest.raises(ModelError, match=r"the weights of the SAE are damaged\); copy the folder again"):
            load(folder)


def test_what_is_saved_again_has_its_own_digest(tmp_path: Path) -> None:
    for folder in (save_mtsae(tmp_path / "a"), save_topk(tmp_path / "b")):
        for dtype in ("float32", "bfloat16"):
            sae = SAE.load_from_disk(folder, dtype=dtype)
            sae.b_dec.data += 1
            sae.save_model(folder)  # SAELens's, of the TopK SAE
            assert torch.equal(load_sae(folder).b_dec, sae.b_dec)


def test_an_sae_from_before_loads(tmp_path: Path) -> None:
    folder = save_mtsae(tmp_path)
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS)
    cfg = json.loads((folder / CFG).read_text())
    del cfg["metadata"]["weights_sha256"]
    (folder / CFG).write_text(json.dumps(cfg))
    check_sae(folder)
    assert torch.equal(load_sae(folder).W_dec, load_file(folder / WEIGHTS)["W_dec"])


@pytest.mark.parametrize("save", [save_mtsae, save_topk])
def test_only_tensors_of_the_sae_are_in_the_file(save: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = save(tmp_path)
    sae: Any = SAE.load_from_disk(folder)
    assert set(load_file(folder / WEIGHTS)) == {name for name, _ in sae.named_parameters()}
