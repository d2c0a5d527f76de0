"""Provide shared fixtures: tiny random language models, generated texts, a tiny trained SAE, and the command line in-process."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import random
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import shapes
import torch

if os.environ.get("CHECK_SHAPES", "1") == "1":
    shapes.install()  # before the package is imported

from folder_hub import FolderHub, install
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

import mtsae_lens.cli
from mtsae_lens.assets import embedded_model_dir
from mtsae_lens.commands.train import run_train
from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.opening import open_sae
from mtsae_lens.training.recipe import TrainSettings

torch.set_num_threads(1)

HOOK = "blocks.0.hook_resid_post"
CONTEXT = 32
_SIZES = {
    "vocab_size": 4096,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # large, so that a wrong conversion changes the logits by much
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def _save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(embedded_model_dir("embedded") / name, folder)
    return folder


def save_tiny_neox(folder: Path, **changes: Any) -> Path:
    torch.manual_seed(0)
    return _save(GPTNeoXForCausalLM(GPTNeoXConfig(**(_SIZES | changes))), folder)


def save_tiny_llama(folder: Path, **changes: Any) -> Path:
    torch.manual_seed(0)
    return _save(LlamaForCausalLM(LlamaConfig(**(_SIZES | {"num_key_value_heads": 1} | changes))), folder)


def make_text(words: str, n_chars: int, seed: int) -> str:
    rng = random.Random(seed)
    vocabulary, lines, length = words.split(), [], 0
    while length < n_chars:
        sentence = " ".join(rng.choice(vocabulary) for _ in range(rng.randrange(6, 16))).capitalize() + rng.choice(".!?")
        lines.append(sentence + ("\n" if rng.random() < 0.2 else ""))
        length += len(lines[-1]) + 1
    return "\n".join(lines)


@pytest.fixture(autouse=True)
def _wrong_shapes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let a test marked `wrong_shapes` reach the package's own checks."""
    marked = request.node.get_closest_marker("wrong_shapes") is not None
    jaxtyping.config.update("jaxtyping_disable", marked)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def save_neox() -> Callable[..., Path]:
    return save_tiny_neox


@pytest.fixture(scope="session")
def save_llama() -> Callable[..., Path]:
    return save_tiny_llama


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a GPT-NeoX in a folder whose path contains the names of three other families."""
    return save_tiny_neox(tmp_path_factory.mktemp("models") / "bert-t5-gemma")


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_model(tiny_model_dir: Path) -> Any:
    return load_language_model(str(tiny_model_dir))


@pytest.fixture(scope="session")
def tokenizer(tiny_model: Any) -> Any:
    return tiny_model.tokenizer


@pytest.fixture(scope="session")
def cutter(tokenizer: Any) -> ContextCutter:
    return ContextCutter(tokenizer, CONTEXT)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "land.txt"
    words = "the cat dog king queen tree river sat ran fell on under over bread sword moon sun old red quickly and but"
    path.write_text(make_text(words, 60_000, seed=1))
    return path


@pytest.fixture(scope="session")
def sea_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text with other words than `text_file`."""
    path = tmp_path_factory.mktemp("texts") / "sea.txt"
    words = "ship storm sail harbour captain wave salt rope fish anchor of a in with north wind blue deep sailed sank"
    path.write_text(make_text(words, 60_000, seed=2))
    return path


@pytest.fixture(scope="session")
def tiny_settings(tiny_model_dir: Path, text_file: Path) -> Callable[..., TrainSettings]:
    def settings(out: Path, **changes: Any) -> TrainSettings:
        values: dict[str, Any] = {
            "model": str(tiny_model_dir),
            "hook_name": HOOK,
            "dataset": str(text_file),
            "d_sae": 32,
            "context_size": CONTEXT,
            "batch_size_tokens": 4 * CONTEXT,
            "training_tokens": 12 * 4 * CONTEXT,
            "lr": 1e-3,
            "log_every_n_steps": 1,
            "checkpoint_every_n_steps": 4,
            "out": out,
            "sae": {"k": 4},
        }
        return TrainSettings(**(values | changes))

    return settings


@pytest.fixture(scope="session")
def tiny_sae_dir(tmp_path_factory: pytest.TempPathFactory, tiny_settings: Callable[..., TrainSettings]) -> Path:
    out = tmp_path_factory.mktemp("sae") / "run"
    run_train(tiny_settings(out, training_tokens=60 * 4 * CONTEXT, checkpoint_every_n_steps=40))
    return out


@pytest.fixture(scope="session")
def lm(tiny_sae_dir: Path) -> Any:
    """The tiny SAE in the tiny model."""
    hooked, _ = open_sae(tiny_sae_dir, model=None, device="cpu", batch_size=4)
    return hooked


@pytest.fixture(scope="session")
def half_lm(tiny_sae_dir: Path) -> Any:
    """The same SAE, in float32, in the tiny model in bfloat16."""
    hooked, _ = open_sae(tiny_sae_dir, model=None, device="cpu", batch_size=4, dtype="bfloat16")
    return hooked


@dataclass
class Outcome:
    """The result of a call of the command line."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """Return the one line that says what is wrong; only progress bars may come before it, and nothing after it."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert self.err.splitlines()[-1] == lines[0], self.err
        assert "Traceback" not in self.err
        return lines[0]


@pytest.fixture
def mtsae(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Return `mtsae(*arguments)`, which runs the command line in this process. An exception that a user would see as a traceback is raised."""

    def call(*arguments: Any) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["mtsae", *map(str, arguments)])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # typer sets its own
        capsys.readouterr()
        code: Any = 0
        try:
            mtsae_lens.cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderHub:
    """A folder in the place of the Hugging Face hub."""
    return install(FolderHub(tmp_path / "hub"), monkeypatch)
