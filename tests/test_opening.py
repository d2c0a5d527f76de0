"""Test opening an SAE with its model, as in a notebook."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from mtsae_lens.errors import ModelError
from mtsae_lens.opening import load_sae, open_sae
from mtsae_lens.training.log import read_log


def test_a_folder_may_be_a_string_and_the_rest_left_out(tiny_sae_dir: Path) -> None:
    lm, model = open_sae(str(tiny_sae_dir))
    assert lm.model is model
    loaded = load_sae(str(tiny_sae_dir))
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in lm.sae.state_dict().items())
    assert read_log(str(tiny_sae_dir / "training_log.jsonl"))


def test_a_folder_without_an_sae(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"expected cfg\.json in this folder, got no such file; give the --out folder"):
        load_sae(str(tmp_path))


def test_a_device_that_is_not_there_is_named(tiny_sae_dir: Path) -> None:
    with pytest.raises(ModelError, match="expected a usable device, got 'cuda:99'"):
        open_sae(tiny_sae_dir, device="cuda:99")


def recording(sae_dir: Path, folder: Path, kwargs: dict[str, Any]) -> Path:
    """The SAE, with what SAELens's runner records."""
    shutil.copytree(sae_dir, folder)
    cfg = json.loads((folder / "cfg.json").read_text())
    cfg["metadata"]["model_from_pretrained_kwargs"] = kwargs
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return folder


@pytest.mark.parametrize(
    ("kwargs", "dtype", "expected"),
    [
        ({}, None, torch.float32),
        ({"center_writing_weights": False}, None, torch.float32),
        ({"dtype": "bfloat16"}, None, torch.bfloat16),
        ({"dtype": "float16", "center_writing_weights": False}, None, torch.float16),
        ({"center_writing_weights": True}, None, torch.float32),
        ({"fold_ln": False, "revision": "step1000"}, None, torch.float32),
        ({"dtype": "bfloat16"}, "float32", torch.float32),
        ({}, "float16", torch.float16),
    ],
)
def test_the_model_has_the_dtype_that_the_sae_records(
    kwargs: dict[str, Any], dtype: str | None, expected: torch.dtype, tiny_sae_dir: Path, tmp_path: Path
) -> None:
    folder = recording(tiny_sae_dir, tmp_path / "sae", kwargs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lm, model = open_sae(folder, dtype=dtype)
    assert model.cfg.dtype == expected
    assert lm.sae.dtype == torch.float32
    messages = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    assert not any(
        "model_from_pretrained_kwargs" in message for message in messages
    )  # SAELens's advice to load the model with them
    told = [f"{name}={value!r}" for name, value in kwargs.items() if name != "dtype" and value is not False]
    assert [message for message in messages if "loaded with" in message] == [message for message in messages if told]
    assert all(words in messages[0] for words in told)
    assert bool(messages) == bool(told)


def test_a_dtype_that_nobody_loads_is_refused(tiny_sae_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="float32, bfloat16, float16, got 'half'"):
        open_sae(tiny_sae_dir, dtype="half")
    with pytest.raises(ModelError, match="got 'auto'"):
        open_sae(recording(tiny_sae_dir, tmp_path / "sae", {"dtype": "auto"}))


def test_model_and_text_are_found_from_another_directory(
    mtsae: Any, tiny_model_dir: Path, text_file: Path, sea_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train on relative paths, measure from a folder that has other things of the same names, then without the text."""
    (tmp_path / "p").mkdir()
    shutil.copytree(tiny_model_dir, tmp_path / "p" / "lm")
    shutil.copy(text_file, tmp_path / "p" / "t.txt")
    (tmp_path / "q" / "lm").mkdir(parents=True)
    shutil.copy(sea_file, tmp_path / "q" / "t.txt")
    monkeypatch.chdir(tmp_path / "p")
    sizes = ["--context-size", 32, "--batch-size-tokens", 64, "--training-tokens", 320, "--d-sae", 32, "--set", "k=4"]
    trained = mtsae(
        "train", "--model", "./lm", "--hook-name", "blocks.0.hook_resid_post", "--dataset", "t.txt", "--out", "sae", *sizes
    )
    assert trained.code == 0, trained.err
    few = ["--n-contexts", 8]
    assert mtsae("evaluate", "sae", "--out", "e", *few).code == 0
    assert str(tmp_path) not in (tmp_path / "p" / "e" / "report.html").read_text()
    monkeypatch.chdir(tmp_path / "q")
    assert mtsae("evaluate", "../p/sae", "--out", "e", *few).code == 0
    here, there = (json.loads((tmp_path / place / "e" / "metrics.json").read_text()) for place in ("p", "q"))
    assert here["ce_loss_without_sae"] == there["ce_loss_without_sae"]
    assert mtsae("upload", "../p/sae", "me/x", "--dry-run", "up").code == 0
    for path in [path for folder in ("up", "e") for path in (tmp_path / "q" / folder).rglob("*") if path.is_file()]:
        assert str(tmp_path).encode() not in path.read_bytes(), path
    shared = mtsae("evaluate", "up/blocks.0.hook_resid_post", "--out", "e2", "--dataset", "../p/t.txt", *few)
    assert "expected lm, on which it was trained, got no such file or folder on this machine; give --model" in shared.error
    shared = mtsae("evaluate", "up/blocks.0.hook_resid_post", "--out", "e2", "--model", "../p/lm", *few)
    assert "expected t.txt, on which it was trained, got no such file or folder on this machine; give --dataset" in shared.error
    (tmp_path / "p" / "t.txt").unlink()
    gone = mtsae("evaluate", "../p/sae", "--out", "e3", *few)
    assert (
        f"expected {tmp_path}/p/t.txt, on which it was trained, got no such file or folder on this machine; give --dataset"
        in gone.error
    )
