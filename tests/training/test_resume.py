"""Test that a resumed run ends with the weights and log rows of an uninterrupted run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mtsae_lens.data.activations import ActivationReader
from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.errors import ConfigError, DataError, OutputError, TrainingInterrupted
from mtsae_lens.training.log import TrainingLog, read_log
from mtsae_lens.training.recipe import TrainSettings, train_sae
from mtsae_lens.training.trainer import SequenceSAETrainer

WEIGHTS = "sae_weights.safetensors"
LOG = "training_log.jsonl"
LONG_TOKENS = 160 * 64  # long enough for a signal to find it running


_models: dict[str, Any] = {}  # loaded once


def train(settings: TrainSettings, *, resume: bool = False) -> None:
    if settings.model not in _models:
        _models[settings.model] = load_language_model(settings.model)
    train_sae(settings, _models[settings.model], resume=resume)


def same_run(one: Path, other: Path) -> bool:
    """Whether two runs have the same weights and the same log but for the times in it."""
    same_bytes = all((one / name).read_bytes() == (other / name).read_bytes() for name in (WEIGHTS, "sparsity.safetensors"))
    return same_bytes and logged(one) == logged(other)


def logged(out: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in read_log(out / LOG)]


def steps_saved(out: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in (out / "checkpoints").glob("step_*"))


def raise_signal_at(step: int, monkeypatch: pytest.MonkeyPatch, *, number: int = signal.SIGINT) -> None:
    """While the step of this number (counted from 0) is made."""
    original = SequenceSAETrainer.step

    def signalled(trainer: SequenceSAETrainer, batch: torch.Tensor) -> Any:
        if trainer.n_training_steps == step:
            signal.raise_signal(number)
        return original(trainer, batch)

    monkeypatch.setattr(SequenceSAETrainer, "step", signalled)


@pytest.fixture(scope="module", params=["mtsae", "topk"])
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def uninterrupted(
    architecture: str, tmp_path_factory: pytest.TempPathFactory, tiny_settings: Callable[..., TrainSettings]
) -> Path:
    out = tmp_path_factory.mktemp("whole") / architecture
    train(tiny_settings(out, architecture=architecture))
    return out


@pytest.mark.parametrize("step", [0, 5, 7, 11])
def test_resumed_after_ctrl_c_is_bit_for_bit_the_same(
    step: int,
    architecture: str,
    uninterrupted: Path,
    tmp_path: Path,
    tiny_settings: Callable[..., TrainSettings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = tiny_settings(tmp_path / "run", architecture=architecture)
    with monkeypatch.context() as patched:
        raise_signal_at(step, patched)
        with pytest.raises(TrainingInterrupted, match=f"saved at step {step + 1} of 12; --resume continues"):
            train(settings)
    assert steps_saved(settings.out)[-1] == step + 1
    assert not (settings.out / WEIGHTS).exists()
    train(settings, resume=True)
    assert same_run(settings.out, uninterrupted)


def test_the_comparison_can_fail(whole: Path, tmp_path: Path, tiny_settings: Callable[..., TrainSettings]) -> None:
    settings = tiny_settings(tmp_path / "run", seed=1)
    train(settings)
    assert not same_run(settings.out, whole)


@pytest.mark.parametrize(
    "sae", [{"activation": "relu", "l1_warm_up_steps": 6}, {"k": 2, "aux_loss_coefficient": 1.0}], ids=["relu", "dead-features"]
)
def test_interrupted_again_and_again(
    sae: dict[str, Any], tmp_path: Path, tiny_settings: Callable[..., TrainSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny_settings(tmp_path / "whole", sae=sae, d_sae=256, dead_feature_window=2)
    train(whole)
    if "k" in sae:
        assert read_log(whole.out / LOG)[-1]["sparsity/dead_features"] > 10
    parts = whole.model_copy(update={"out": tmp_path / "parts"})
    for step in (1, 3, 8):
        with monkeypatch.context() as patched:
            raise_signal_at(step, patched)
            with pytest.raises(TrainingInterrupted):
                train(parts, resume=True)
    train(parts, resume=True)
    assert same_run(parts.out, whole.out)


def test_handlers_are_put_back(
    tmp_path: Path, tiny_settings: Callable[..., TrainSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    raise_signal_at(2, monkeypatch, number=signal.SIGTERM)
    with pytest.raises(TrainingInterrupted) as stopped:
        train(tiny_settings(tmp_path / "run"))
    assert stopped.value.signal_number == signal.SIGTERM
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_resuming_a_finished_run_changes_nothing(
    uninterrupted: Path, architecture: str, tmp_path: Path, tiny_settings: Any
) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    train(tiny_settings(tmp_path / "run", architecture=architecture), resume=True)
    assert same_run(tmp_path / "run", uninterrupted)


def raise_signal_at_reading(number: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """While the language model makes its forward pass of this number (counted from 0); gives back the passes that were made."""
    read, passes = ActivationReader.read, list[int]()

    def signalled(reader: ActivationReader, tokens: torch.Tensor) -> torch.Tensor:
        if len(passes) == number:
            signal.raise_signal(signal.SIGTERM)
        passes.append(len(tokens))
        return read(reader, tokens)

    monkeypatch.setattr(ActivationReader, "read", signalled)
    return passes


def test_a_signal_stops_the_first_reading_after_one_forward_pass(
    architecture: str, uninterrupted: Path, tmp_path: Path, tiny_settings: Callable[..., TrainSettings]
) -> None:
    settings = tiny_settings(tmp_path / "run", architecture=architecture, lm_batch_size_sequences=4)
    with pytest.MonkeyPatch.context() as patched:
        passes = raise_signal_at_reading(2, patched)
        with pytest.raises(TrainingInterrupted, match="before the first step; type the same command again"):
            train(settings)
    assert len(passes) == 3
    assert steps_saved(settings.out) == []
    train(settings)
    reference = tiny_settings(tmp_path / "whole", architecture=architecture, lm_batch_size_sequences=4)
    train(reference)
    assert same_run(settings.out, reference.out)


def test_a_signal_stops_a_later_reading_and_the_run_goes_on_as_if_uninterrupted(
    architecture: str, tmp_path: Path, tiny_settings: Callable[..., TrainSettings]
) -> None:
    blocks = {"buffer_size_sequences": 20, "lm_batch_size_sequences": 4}  # of five steps; 20 steps are read ahead at the start
    settings = {"training_tokens": 24 * 4 * 32, "checkpoint_every_n_steps": 100, **blocks}
    whole = tiny_settings(tmp_path / "whole", architecture=architecture, **settings)
    train(whole)
    parts = whole.model_copy(update={"out": tmp_path / "parts"})
    with pytest.MonkeyPatch.context() as patched:
        passes = raise_signal_at_reading(22, patched)
        with pytest.raises(TrainingInterrupted, match="saved at step 20 of 24; --resume continues"):
            train(parts)
    assert len(passes) == 23
    assert steps_saved(parts.out) == [20]
    train(parts, resume=True)
    assert same_run(parts.out, whole.out)


def test_a_checkpoint_from_before_b_dec_init_goes_on(interrupted: Callable[..., TrainSettings], whole: Path) -> None:
    path = interrupted().out / "checkpoints" / "step_000000007" / "trainer_state.json"
    state = json.loads(path.read_text())
    assert state["fingerprint"].pop("b_dec_init") is None
    path.write_text(json.dumps(state))
    train(interrupted(), resume=True)
    assert same_run(interrupted().out, whole)


# ---------------------------------------------------------------------------------------------- signals from outside


@pytest.fixture(scope="module")
def long_arguments(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, text_file: Path) -> list[str]:
    config = tmp_path_factory.mktemp("config") / "often.yaml"
    config.write_text("checkpoint_every_n_steps: 10\nlog_every_n_steps: 5\nlr: 0.001\nsae: {k: 4}\n")
    arguments = f"train --model {tiny_model_dir} --hook-name blocks.0.hook_resid_post --dataset {text_file} --context-size 32 "
    return f"{arguments} --batch-size-tokens 64 --training-tokens {LONG_TOKENS} --d-sae 32 --config {config}".split()


@pytest.fixture(scope="module")
def long_settings(tiny_settings: Callable[..., TrainSettings]) -> Callable[[Path], TrainSettings]:
    return lambda out: tiny_settings(
        out, batch_size_tokens=64, training_tokens=LONG_TOKENS, checkpoint_every_n_steps=10, log_every_n_steps=5
    )


@pytest.fixture(scope="module")
def long_uninterrupted(tmp_path_factory: pytest.TempPathFactory, long_settings: Callable[[Path], TrainSettings]) -> Path:
    out = tmp_path_factory.mktemp("long") / "run"
    train(long_settings(out))
    return out


@pytest.fixture(scope="module")
def signalled(tmp_path_factory: pytest.TempPathFactory, long_arguments: list[str]) -> dict[int, tuple[Path, int, str]]:
    """Folder, exit code and stderr of two `mtsae train`, each sent its signal as soon as its first checkpoint is there."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "mtsae_lens.cli", *long_arguments, "--out"]
    outs = {number: tmp_path_factory.mktemp("signalled") / "run" for number in (signal.SIGKILL, signal.SIGTERM)}
    processes = {
        number: subprocess.Popen(
            [*command, str(out)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for number, out in outs.items()
    }
    waiting, deadline = dict(outs), time.monotonic() + 120
    try:
        while waiting:
            for number, out in list(waiting.items()):
                assert processes[number].poll() is None, processes[number].communicate()[1]
                if list(out.glob("checkpoints/step_*")):
                    processes[number].send_signal(number)
                    del waiting[number]
            assert time.monotonic() < deadline
            time.sleep(0.002)
        return {number: (outs[number], process.wait(60), process.communicate()[1]) for number, process in processes.items()}
    finally:
        for process in processes.values():
            process.kill()


def test_resumed_after_kill_9_is_bit_for_bit_the_same(
    signalled: dict[int, tuple[Path, int, str]], long_arguments: list[str], long_uninterrupted: Path, mtsae: Callable[..., Any]
) -> None:
    out, code, _ = signalled[signal.SIGKILL]
    assert code == -signal.SIGKILL
    assert not (out / WEIGHTS).exists()
    outcome = mtsae(*long_arguments, "--out", out, "--resume")
    assert outcome.code == 0, outcome.err
    assert same_run(out, long_uninterrupted)


def test_sigterm_saves_a_checkpoint_to_resume_from(
    signalled: dict[int, tuple[Path, int, str]], long_settings: Callable[[Path], TrainSettings], long_uninterrupted: Path
) -> None:
    out, code, errors = signalled[signal.SIGTERM]
    assert code != 0
    assert "Traceback" not in errors
    assert not (out / WEIGHTS).exists()
    stopped_at = steps_saved(out)[-1]
    assert 10 <= stopped_at < 160
    train(long_settings(out), resume=True)
    assert same_run(out, long_uninterrupted)


def test_sigterm_exits_143_and_says_what_to_do(signalled: dict[int, tuple[Path, int, str]]) -> None:
    _, code, errors = signalled[signal.SIGTERM]
    assert code == 128 + signal.SIGTERM
    assert "stopped: saved at step" in errors
    assert "--resume continues" in errors


# ---------------------------------------------------------------------------------------------- what cannot be resumed


@pytest.fixture(scope="module")
def stopped_at_7(tmp_path_factory: pytest.TempPathFactory, tiny_settings: Callable[..., TrainSettings]) -> Path:
    out = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patched:
        raise_signal_at(6, patched)
        with pytest.raises(TrainingInterrupted):
            train(tiny_settings(out))
    return out


@pytest.fixture
def interrupted(
    stopped_at_7: Path, tmp_path: Path, tiny_settings: Callable[..., TrainSettings]
) -> Callable[..., TrainSettings]:
    """Settings, with changes, of a run that has checkpoints at steps 4 and 7."""
    shutil.copytree(stopped_at_7, tmp_path / "run")
    assert steps_saved(tmp_path / "run") == [4, 7]
    return lambda **changes: tiny_settings(tmp_path / "run", **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_settings: Callable[..., TrainSettings]) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    train(tiny_settings(out))
    return out


FILES = ("sae_weights.safetensors", "trainer_state.safetensors", "trainer_state.json", "activation_scaler.json")


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    elif how == "flipped":
        data[-9] ^= 1
        path.write_bytes(data)
    else:
        path.write_bytes({"cut": data[: len(data) // 2], "noise": b"\xff\xfe\x00" * 50, "null": b"null", "list": b"[]"}[how])


DAMAGES = [
    *((name, how) for name in FILES for how in ("cut", "gone", "flipped")),
    *((name, how) for name in FILES[2:] for how in ("noise", "null", "list")),
]


@pytest.mark.parametrize(("name", "how"), DAMAGES)
def test_a_damaged_checkpoint_is_told_and_the_one_before_serves(
    name: str, how: str, interrupted: Callable[..., TrainSettings], whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = interrupted().out
    damage(out / "checkpoints" / "step_000000007" / name, how)
    train(interrupted(), resume=True)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(told) == 1
    assert re.search(r"step_000000007.*damaged.*; trying the previous checkpoint", told[0])
    assert same_run(out, whole)
    assert steps_saved(out) == [8, 12]


@pytest.mark.parametrize(("name", "how"), [*((name, "cut") for name in FILES), *((name, "null") for name in FILES[2:])])
def test_where_every_checkpoint_is_damaged_nothing_is_trained(
    name: str, how: str, interrupted: Callable[..., TrainSettings]
) -> None:
    out = interrupted().out
    for step in (4, 7):
        folder = out / "checkpoints" / f"step_{step:09d}"
        (folder / "SHA256SUMS").unlink()  # as in checkpoints from before
        damage(folder / name, how)
    with pytest.raises(DataError, match=r"^[^\n]*damaged[^\n]*delete .*checkpoints and train again$"):
        train(interrupted(), resume=True)
    assert steps_saved(out) == [4, 7]


@pytest.mark.parametrize(
    "key", ["n_training_steps", "n_training_samples", "param_groups", "lr_scheduler", "coefficient_schedulers", "fingerprint"]
)
@pytest.mark.parametrize("value", [None, "x", [3], "gone"])
def test_a_state_of_another_shape_is_told(key: str, value: Any, interrupted: Callable[..., TrainSettings]) -> None:
    folder = interrupted().out / "checkpoints"
    shutil.rmtree(folder / "step_000000004")
    path = folder / "step_000000007" / "trainer_state.json"
    (path.parent / "SHA256SUMS").unlink()
    content = json.loads(path.read_text())
    del content[key]
    path.write_text(json.dumps(content if value == "gone" else content | {key: value}))
    with pytest.raises(
        DataError,
        match=r"^[^\n]*step_000000007[^\n]*: expected [^\n]*, got [^\n]* \(damaged\); delete [^\n]*step_000000007 and resume again$",
    ):
        train(interrupted(), resume=True)


def test_a_checkpoint_from_before_has_no_digests(interrupted: Callable[..., TrainSettings], whole: Path) -> None:
    folder = interrupted().out / "checkpoints" / "step_000000007"
    for name in ("SHA256SUMS", "training_log.jsonl"):
        (folder / name).unlink()
    for name in FILES[:2]:
        save_file(load_file(folder / name), folder / name)
    state = json.loads((folder / "trainer_state.json").read_text())
    for name in ("model_contents", "dataset_contents"):
        del state["fingerprint"][name]
    (folder / "trainer_state.json").write_text(json.dumps(state))
    train(interrupted(), resume=True)
    assert same_run(interrupted().out, whole)


@pytest.mark.parametrize("how", ["emptied", "gone", "cut", "changed"])
def test_a_damaged_log_is_restored(
    how: str, interrupted: Callable[..., TrainSettings], whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = interrupted().out / LOG
    rows = log.read_text()
    if how == "gone":
        log.unlink()
    else:
        log.write_text({"emptied": "", "cut": rows[: len(rows) // 3], "changed": rows.replace("1", "2", 1)}[how])
    train(interrupted(), resume=True)
    assert "training_log.jsonl was cut or changed; its rows were restored from" in capsys.readouterr().err
    assert same_run(interrupted().out, whole)


@pytest.mark.parametrize("line", ["null", "[]", "3", '{"stop": 1}', '{"step": "x"}', "{", "[" * 100_000])
def test_a_log_line_that_is_no_row_is_named(line: str, tmp_path: Path) -> None:
    (tmp_path / LOG).write_text(f'{{"step": 1}}\n{line}\n')
    for read in (lambda path: TrainingLog(path, 3), read_log):
        with pytest.raises(
            DataError, match=r"training_log\.jsonl:2: expected a row.*damaged.; delete that line and resume again"
        ):
            read(tmp_path / LOG)


def test_a_text_or_model_that_changed_is_refused(
    tmp_path: Path,
    tiny_settings: Callable[..., TrainSettings],
    tiny_model_dir: Path,
    text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text, model = Path(shutil.copy(text_file, tmp_path / "text.txt")), Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    settings = tiny_settings(tmp_path / "run", dataset=str(text), model=str(model))
    raise_signal_at(6, monkeypatch)
    with pytest.raises(TrainingInterrupted):
        train_sae(settings)
    monkeypatch.undo()
    for path in (text, model / "config.json"):
        before = path.read_bytes(), path.stat()
        path.write_bytes(before[0] + b"\n")
        with pytest.raises(ConfigError, match=r"the files of .* have changed since.*resume with the same, or give a new --out"):
            train_sae(settings, resume=True)
        path.write_bytes(before[0])
        os.utime(path, ns=(before[1].st_atime_ns, before[1].st_mtime_ns))
    train_sae(settings, resume=True)


def test_files_get_the_permissions_of_the_umask(whole: Path) -> None:
    """SAE and checkpoints too, which safetensors writes for their owner alone."""
    os.umask(umask := os.umask(0o022))
    files = [path for path in whole.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~umask}


def test_an_earlier_checkpoint_serves(interrupted: Callable[..., TrainSettings], whole: Path) -> None:
    shutil.rmtree(interrupted().out / "checkpoints" / "step_000000007")
    train(interrupted(), resume=True)
    assert same_run(interrupted().out, whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.5}, "lr: 0.001 then, 0.5 now"),
        ({"seed": 3}, "seed: 0 then, 3 now"),
        ({"sae": {"k": 5}}, r"sae\.k: 4 then, 5 now"),
        ({"d_sae": 16}, r"sae\.d_sae: 32 then, 16 now"),
        ({"architecture": "topk"}, r"'mtsae' then, 'topk' now"),
        (
            {"hook_name": "blocks.1.hook_resid_post"},
            "hook_name: 'blocks.0.hook_resid_post' then, 'blocks.1.hook_resid_post' now",
        ),
        ({"dataset": "kjv"}, "dataset_path: .* then, 'kjv' now"),
        ({"weight_decay": 0.01}, "weight_decay: 0.0 then, 0.01 now"),
        ({"training_tokens": 20 * 128}, "training_tokens: 1536 then, 2560 now"),
        ({"b_dec_init": "zeros"}, "b_dec_init: None then, 'zeros' now"),
        ({"frozen": "decoder"}, "frozen: None then, 'decoder' now"),
        ({"prepend_bos": False}, "prepend_bos: True then, False now"),
        ({"packed": False}, "disable_concat_sequences: False then, True now"),
        ({"dead_feature_window": 1}, r"dead_feature_window: \d+ then, 1 now"),
    ],
)
def test_other_settings_are_refused(interrupted: Callable[..., TrainSettings], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"{message}.*resume with the same, or give a new --out"):
        train(interrupted(**changes), resume=True)
    assert steps_saved(interrupted().out) == [4, 7]


def test_other_settings_are_refused_for_a_short_finished_run_too(
    tmp_path: Path, tiny_settings: Callable[..., TrainSettings]
) -> None:
    train(tiny_settings(tmp_path / "run", checkpoint_every_n_steps=200))
    with pytest.raises(ConfigError):
        train(tiny_settings(tmp_path / "run", checkpoint_every_n_steps=200, lr=0.5), resume=True)


def test_a_run_is_not_written_over(whole: Path, interrupted: Callable[..., TrainSettings], tiny_settings: Any) -> None:
    for out in (whole, interrupted().out):
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        with pytest.raises(OutputError, match="holds a run already; give --resume, or another --out"):
            train(tiny_settings(out))
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path != out} == before


def test_a_checkpoint_is_whole_or_absent(
    interrupted: Callable[..., TrainSettings], whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while a checkpoint is written, the run resumes from the one before."""
    from mtsae_lens.training import checkpoints

    def killed(*_: Any) -> None:
        raise SystemExit(9)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "write_json", killed)
        with pytest.raises(SystemExit):
            train(interrupted(), resume=True)
    assert steps_saved(interrupted().out) == [4, 7]
    train(interrupted(), resume=True)
    assert same_run(interrupted().out, whole)


def test_what_is_left_of_an_old_checkpoint_is_deleted(interrupted: Callable[..., TrainSettings]) -> None:
    """A process may be killed while it deletes an old checkpoint; a later run finishes that."""
    settings = interrupted()
    train_sae(settings, resume=True)  # a finished run saves no more checkpoints, which would delete it too
    half_deleted = settings.out / "checkpoints" / "step_000000001"
    half_deleted.mkdir()
    (half_deleted / "cfg.json").write_text("{}")
    train_sae(settings, resume=True)
    assert not half_deleted.exists()
