"""Save and load the state of training: safetensors and JSON in one folder for each checkpoint, with the SHA-256 of its files."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from sae_lens import SAETrainer, TrainingSAE
from safetensors import SafetensorError
from safetensors.torch import save_file

from mtsae_lens.checksums import check_checksums, write_checksums
from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.files import write_json, write_whole_folder
from mtsae_lens.ranks import current_ranks
from mtsae_lens.sealed import read_json, read_tensors
from mtsae_lens.training.log import LOG_FILE
from mtsae_lens.upstream import read_firing_counts, restore_firing_counts

Trainer: TypeAlias = SAETrainer[TrainingSAE[Any], Any]

_STATE_TENSORS = "trainer_state.safetensors"
_STATE_JSON = "trainer_state.json"
_SCALER_JSON = "activation_scaler.json"
_KEPT = 2  # newest checkpoints that are kept; an older one would be needed only if these are damaged
_CONTENTS = {"model_contents": "model_name", "dataset_contents": "dataset_path"}
"""Entries of the fingerprint that describe local files, each with the setting that names the files. Older checkpoints lack these
entries.
"""


class _Numbers(BaseModel):
    """The content of `trainer_state.json`."""

    model_config = ConfigDict(extra="allow", strict=True)

    n_training_steps: int = Field(ge=0)
    n_training_samples: int = Field(ge=0)
    n_frac_active_samples: int = Field(ge=0)
    dead_feature_window: int | None = Field(None, gt=0)
    """Missing in checkpoints of version 0.1.0, where the window was not bounded by the length of the run."""
    param_groups: list[dict[str, Any]]
    lr_scheduler: dict[str, Any]
    coefficient_schedulers: dict[str, dict[str, Any]]
    fingerprint: dict[str, Any]


class _Scaler(BaseModel):
    """The content of `activation_scaler.json`."""

    scaling_factor: FiniteFloat | None


def save_checkpoint(trainer: Trainer, folder: Path, fingerprint: Mapping[str, Any]) -> Path:
    """Write everything that the rest of the run depends on. The data stream depends only on the step, so it is not saved.

    Args:
        trainer: the trainer, between two steps.
        folder: the folder of all checkpoints of the run.
        fingerprint: the settings that must be the same when the run is resumed.

    Returns:
        The folder of this checkpoint.
    """
    path = folder / f"step_{trainer.n_training_steps:09d}"
    optimizer = trainer.optimizer.state_dict()
    tensors = {
        f"optimizer.{index}.{name}": torch.as_tensor(value).contiguous()
        for index, state in optimizer["state"].items()
        for name, value in state.items()
    }
    counts, n_samples = read_firing_counts(trainer)
    tensors |= counts
    numbers = {
        "n_training_steps": trainer.n_training_steps,
        "n_training_samples": trainer.n_training_samples,
        "n_frac_active_samples": n_samples,
        "dead_feature_window": trainer.dead_feature_window,
        "param_groups": optimizer["param_groups"],
        "lr_scheduler": _plain(trainer.lr_scheduler.state_dict()),
        "coefficient_schedulers": {name: s.state_dict() for name, s in trainer.coefficient_schedulers.items()},
        "fingerprint": dict(fingerprint),
    }
    with write_whole_folder(path) as partial:
        trainer.sae.save_model(partial)
        save_file(tensors, partial / _STATE_TENSORS)
        trainer.activation_scaler.save(str(partial / _SCALER_JSON))
        write_json(partial / _STATE_JSON, numbers)
        if (folder.parent / LOG_FILE).is_file():
            shutil.copyfile(folder.parent / LOG_FILE, partial / LOG_FILE)
        write_checksums(partial)
    delete_other_checkpoints(path)
    return path


def delete_other_checkpoints(newest: Path) -> None:
    """Delete old checkpoints of a run, and those of later steps, which the run repeats.

    Args:
        newest: the checkpoint from which the run continues; it and the previous one are kept.
    """
    others = sorted(newest.parent.glob("step_*"))
    earlier = [path for path in others if path.name <= newest.name]
    for path in others:
        if path not in earlier[-_KEPT:]:
            shutil.rmtree(path, ignore_errors=True)


def _plain(state: Any) -> Any:
    """Convert a scheduler's state for JSON; a lambda has no state."""
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [_plain(value) for value in state]
    return state


def list_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints of a run.

    Args:
        folder: the folder of all checkpoints of the run.

    Returns:
        The folders of the checkpoints, the newest first.
    """
    return sorted(folder.glob("step_*"), reverse=True)


def resume_from(trainer: Trainer, candidates: Sequence[Path], fingerprint: Mapping[str, Any]) -> Path | None:
    """Load the first checkpoint that is not damaged, with a warning for those that are.

    Args:
        trainer: a new trainer.
        candidates: the folders of checkpoints, in the order of preference.
        fingerprint: the settings that must be the same.

    Returns:
        The checkpoint that was loaded; None without candidates.

    Raises:
        ConfigError: the settings, the model or the text have changed (`load_checkpoint`).
        DataError: all checkpoints are damaged.
    """
    damaged: list[Path] = []
    for path in candidates:
        try:
            load_checkpoint(trainer, path, fingerprint)
        except DataError as error:
            if path == candidates[-1]:
                if damaged:
                    raise DataError(
                        f"{error}; the later checkpoints are damaged too, so delete {path.parent} and train again"
                    ) from error
                raise
            print(f"warning: {error}; trying the previous checkpoint", file=sys.stderr)
            damaged.append(path)
        else:
            for other in damaged:  # so that they do not count as the newest
                other.rename(other.with_name(f"damaged_{other.name}"))
            return path
    return None


def resume_ranks_from(trainer: Trainer, candidates: Sequence[Path], fingerprint: Mapping[str, Any]) -> Path | None:
    """Load the first checkpoint that is not damaged, on every rank the one that the first rank has found (`resume_from`).

    Args:
        trainer: a new trainer.
        candidates: the folders of checkpoints, in the order of preference; only those of the first rank count.
        fingerprint: the settings that must be the same.

    Returns:
        The checkpoint that was loaded; None without candidates.
    """
    ranks = current_ranks()
    if ranks.is_first:
        checkpoint = resume_from(trainer, candidates, fingerprint)
        ranks.tell(str(checkpoint.absolute()) if checkpoint else None)
        return checkpoint
    found = ranks.tell(None)
    if found:
        load_checkpoint(trainer, Path(found), fingerprint)
    return Path(found) if found else None


def load_checkpoint(trainer: Trainer, path: Path, fingerprint: Mapping[str, Any]) -> None:
    """Load a checkpoint into a new trainer.

    Args:
        trainer: a new trainer.
        path: the folder of the checkpoint.
        fingerprint: the settings that must be the same.

    Raises:
        ConfigError: the checkpoint was made with other settings, or from a model or text that has changed since.
        DataError: a file of the checkpoint is damaged.
    """
    remedy = f"delete {path} and resume again"
    check_checksums(path, remedy)
    numbers = read_json(path / _STATE_JSON, _Numbers, remedy)
    scaler = read_json(path / _SCALER_JSON, _Scaler, remedy)
    tensors, _ = read_tensors(path / _STATE_TENSORS, remedy, str(trainer.cfg.device))
    _check_fingerprint(path, numbers.fingerprint, fingerprint)
    try:
        trainer.sae.load_weights_from_checkpoint(path)
        trainer.activation_scaler.scaling_factor = scaler.scaling_factor
        if scaler.scaling_factor is not None:  # not folded in yet, also where the run trains an SAE further
            trainer.sae.cfg.normalize_activations = "expected_average_only_in"
        _take_up(trainer, numbers, tensors)
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: expected a checkpoint, got {type(error).__name__}: {reason} (damaged); {remedy}") from error


def _check_fingerprint(path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    differences = []
    for key, value in now.items():
        if then.get(key) == value or (key in _CONTENTS and key not in then):
            continue
        if key in _CONTENTS:
            differences.append(f"the files of {now[_CONTENTS[key]]} have changed since: their names, sizes or times differ")
        else:
            differences.append(f"{key}: {then.get(key)!r} then, {value!r} now")
    if differences:
        raise ConfigError(
            f"{path}: expected a checkpoint of the same settings, got one made with other settings ({'; '.join(differences)}); resume with "
            "the same, or give a new --out"
        )


def _take_up(trainer: Trainer, numbers: _Numbers, tensors: dict[str, torch.Tensor]) -> None:
    restore_firing_counts(trainer, tensors, numbers.n_frac_active_samples)
    state: dict[int, dict[str, torch.Tensor]] = {}
    parameters = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    for key, tensor in tensors.items():
        _, index, name = key.split(".")
        parameter = parameters[int(index)]
        if tensor.ndim:  # laid out in memory as the weight is, which the fused optimizer takes for granted
            laid_out = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor.view_as(parameter))
        state.setdefault(int(index), {})[name] = laid_out if tensor.ndim else tensor
    trainer.optimizer.load_state_dict({"state": state, "param_groups": numbers.param_groups})
    trainer.lr_scheduler.load_state_dict(numbers.lr_scheduler)
    for name, scheduler_state in numbers.coefficient_schedulers.items():
        trainer.coefficient_schedulers[name].load_state_dict(scheduler_state)
    trainer.dead_feature_window = numbers.dead_feature_window or trainer.cfg.dead_feature_window
    trainer.n_training_steps = numbers.n_training_steps
    trainer.n_training_samples = numbers.n_training_samples
