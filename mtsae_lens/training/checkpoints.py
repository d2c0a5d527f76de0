"""Training state on disk: safetensors and JSON, a folder per checkpoint, each whole or absent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.files import whole_folder, write_json

Trainer: TypeAlias = SAETrainer[TrainingSAE[Any], Any]

_STATE_TENSORS = "trainer_state.safetensors"
_STATE_JSON = "trainer_state.json"
_KEPT = 2  # the newest ones; an older one is of use only if these are damaged


def save_checkpoint(trainer: Trainer, folder: Path, fingerprint: Mapping[str, Any]) -> Path:
    """Write everything that the rest of the run depends on; the data stream depends on the step alone and needs nothing.

    Args:
        trainer: between two steps.
        folder: of all checkpoints of the run.
        fingerprint: settings that must be the same when the run goes on.
    """
    path = folder / f"step_{trainer.n_training_steps:09d}"
    optimizer = trainer.optimizer.state_dict()
    tensors = {
        f"optimizer.{index}.{name}": torch.as_tensor(value).contiguous()
        for index, state in optimizer["state"].items()
        for name, value in state.items()
    }
    tensors["act_freq_scores"] = trainer.act_freq_scores
    tensors["n_forward_passes_since_fired"] = trainer.n_forward_passes_since_fired
    numbers = {
        "n_training_steps": trainer.n_training_steps,
        "n_training_samples": trainer.n_training_samples,
        "n_frac_active_samples": trainer.n_frac_active_samples,
        "param_groups": optimizer["param_groups"],
        "lr_scheduler": _plain(trainer.lr_scheduler.state_dict()),
        "coefficient_schedulers": {name: s.state_dict() for name, s in trainer.coefficient_schedulers.items()},
        "fingerprint": dict(fingerprint),
    }
    with whole_folder(path) as partial:
        trainer.sae.save_model(partial)
        save_file(tensors, partial / _STATE_TENSORS)
        trainer.activation_scaler.save(str(partial / "activation_scaler.json"))
        write_json(partial / _STATE_JSON, numbers)
    for old in sorted(folder.glob("step_*"))[:-_KEPT]:
        shutil.rmtree(old)
    return path


def _plain(state: Any) -> Any:
    """A scheduler's state as JSON knows it; the state of a lambda is none."""
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [_plain(value) for value in state]
    return state


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run, if it has one."""
    return max(folder.glob("step_*"), default=None)


def load_checkpoint(trainer: Trainer, path: Path, fingerprint: Mapping[str, Any]) -> None:
    """Bring a freshly built trainer to the state it was saved in.

    Raises:
        ConfigError: the checkpoint was made with other settings, so the result would equal neither run.
        DataError: its files are damaged.
    """
    try:
        numbers = json.loads((path / _STATE_JSON).read_text())
        differences = [
            f"{key}: {numbers['fingerprint'].get(key)!r} then, {value!r} now"
            for key, value in fingerprint.items()
            if numbers["fingerprint"].get(key) != value
        ]
        if differences:
            raise ConfigError(
                f"{path} was made with other settings ({'; '.join(differences)}); resume with the same, or give a new --out"
            )
        tensors = load_file(path / _STATE_TENSORS, device=str(trainer.cfg.device))
        trainer.sae.load_weights_from_checkpoint(path)
        trainer.activation_scaler.load(path / "activation_scaler.json")
    except (OSError, SafetensorError, json.JSONDecodeError, UnicodeDecodeError, KeyError) as error:
        raise DataError(
            f"checkpoint {path} is damaged ({type(error).__name__}: {error}); delete it and resume from an earlier one"
        ) from error
    trainer.act_freq_scores = tensors.pop("act_freq_scores")
    trainer.n_forward_passes_since_fired = tensors.pop("n_forward_passes_since_fired")
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        _, index, name = key.split(".")
        state.setdefault(int(index), {})[name] = tensor
    trainer.optimizer.load_state_dict({"state": state, "param_groups": numbers["param_groups"]})
    trainer.lr_scheduler.load_state_dict(numbers["lr_scheduler"])
    for name, scheduler_state in numbers["coefficient_schedulers"].items():
        trainer.coefficient_schedulers[name].load_state_dict(scheduler_state)
    trainer.n_training_steps = numbers["n_training_steps"]
    trainer.n_training_samples = numbers["n_training_samples"]
    trainer.n_frac_active_samples = numbers["n_frac_active_samples"]
