"""Training with a thread that reads ahead gives the very weights of training without, also where it is stopped."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mtsae_lens.data.activations import ActivationReader
from mtsae_lens.errors import DataError, TrainingInterrupted
from mtsae_lens.training.log import read_log
from mtsae_lens.training.recipe import TrainSettings, runner_config, train_sae
from mtsae_lens.training.trainer import SequenceSAETrainer

WEIGHTS = "sae_weights.safetensors"
BLOCKS = {"buffer_size_sequences": 20, "lm_batch_size_sequences": 4, "training_tokens": 24 * 4 * 32}  # of five steps


@pytest.fixture(params=["mtsae", "topk"])
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def settings(architecture: str, tiny_settings: Callable[..., TrainSettings]) -> Callable[..., TrainSettings]:
    return lambda out, **changes: tiny_settings(out, **({"architecture": architecture, "prefetch": True} | BLOCKS | changes))


@pytest.fixture
def whole(settings: Callable[..., TrainSettings], tiny_model: Any, tmp_path: Path) -> bytes:
    train_sae(settings(tmp_path / "whole", prefetch=False), tiny_model)
    return (tmp_path / "whole" / WEIGHTS).read_bytes()


def no_reader_is_left() -> bool:
    return all(thread.name != "read activations" for thread in threading.enumerate())


def test_the_weights_are_the_same(whole: bytes, settings: Any, tiny_model: Any, tmp_path: Path) -> None:
    train_sae(settings(tmp_path / "run"), tiny_model)
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == whole
    assert no_reader_is_left()
    for out in (tmp_path / "run", tmp_path / "whole"):
        rows = read_log(out / "training_log.jsonl")
        waits = [(row["time/wait_for_activations_s"], row["time/wait_for_sae_s"]) for row in rows]
        assert all(value >= 0 for pair in waits for value in pair)
        assert sum(activations for activations, _ in waits) > 0


@pytest.mark.parametrize("where", ["reading", "training"])
def test_stopped_and_resumed(
    where: str, whole: bytes, settings: Any, tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = settings(tmp_path / "run")
    with monkeypatch.context() as patched:
        if where == "training":
            step = SequenceSAETrainer.step

            def stopped(trainer: SequenceSAETrainer, batch: torch.Tensor) -> Any:
                if trainer.n_training_steps == 13:
                    signal.raise_signal(signal.SIGTERM)
                return step(trainer, batch)

            patched.setattr(SequenceSAETrainer, "step", stopped)
        else:
            read, passes = ActivationReader.read, list[int]()

            def stopping(reader: ActivationReader, tokens: torch.Tensor) -> torch.Tensor:
                passes.append(1)
                if len(passes) == 22:  # of the last block; the thread cannot handle a signal, so the main one gets it
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
                return read(reader, tokens)

            patched.setattr(ActivationReader, "read", stopping)
        with pytest.raises(TrainingInterrupted, match=r"saved at step \d+ of 24; --resume continues"):
            train_sae(run, tiny_model)
    assert no_reader_is_left()
    train_sae(run, tiny_model, resume=True)
    assert (run.out / WEIGHTS).read_bytes() == whole


def test_an_error_of_the_reader_ends_the_run(
    settings: Any, tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, passes = ActivationReader.read, list[int]()

    def broken(reader: ActivationReader, tokens: torch.Tensor) -> torch.Tensor:
        passes.append(1)
        if len(passes) == 22:
            raise DataError("activations are not finite")
        return read(reader, tokens)

    monkeypatch.setattr(ActivationReader, "read", broken)
    with pytest.raises(DataError, match="activations are not finite"):
        train_sae(settings(tmp_path / "run"), tiny_model)
    assert no_reader_is_left()


def test_an_error_of_the_trainer_ends_the_reader(
    settings: Any, tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(trainer: SequenceSAETrainer, batch: torch.Tensor) -> Any:
        raise DataError("the loss is not finite")

    monkeypatch.setattr(SequenceSAETrainer, "step", broken)
    with pytest.raises(DataError, match="the loss is not finite"):
        train_sae(settings(tmp_path / "run"), tiny_model)
    assert no_reader_is_left()


def test_it_is_on_for_a_gpu_by_default(tiny_settings: Callable[..., TrainSettings], tmp_path: Path) -> None:
    assert not runner_config(tiny_settings(tmp_path), 32).prefetch_llm_batches
    assert runner_config(tiny_settings(tmp_path, device="cuda"), 32).prefetch_llm_batches
    assert not runner_config(tiny_settings(tmp_path, device="cuda", prefetch=False), 32).prefetch_llm_batches
