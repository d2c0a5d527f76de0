"""An SAE with its model, opened as a notebook would."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mtsae_lens.commands.loading import load_sae, open_sae
from mtsae_lens.errors import ModelError
from mtsae_lens.training.log import read_log


def test_a_folder_may_be_a_string_and_the_rest_left_out(tiny_sae_dir: Path) -> None:
    lm, model = open_sae(str(tiny_sae_dir))
    assert lm.model is model
    loaded = load_sae(str(tiny_sae_dir))
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in lm.sae.state_dict().items())
    assert read_log(str(tiny_sae_dir / "training_log.jsonl"))


def test_a_folder_without_an_sae(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no cfg\.json; needed the --out folder"):
        load_sae(str(tmp_path))


def test_a_device_that_is_not_there_is_named(tiny_sae_dir: Path) -> None:
    with pytest.raises(ModelError, match="device 'cuda:99' cannot be used here"):
        open_sae(tiny_sae_dir, device="cuda:99")
