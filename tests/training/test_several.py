"""Several SAEs in one pass end in the very weights of the SAEs trained alone, whatever stops them."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mtsae_lens.commands.cache import run_cache
from mtsae_lens.commands.cache_settings import CacheSettings
from mtsae_lens.data import activations
from mtsae_lens.data.masks import zero_rows
from mtsae_lens.errors import ConfigError, TrainingInterrupted
from mtsae_lens.opening import load_sae
from mtsae_lens.training.log import read_log
from mtsae_lens.training.recipe import TrainSettings, make_runner, train_sae
from mtsae_lens.training.several import settings_of_each, train_saes
from mtsae_lens.training.trainer import SequenceSAETrainer

HOOKS = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_pre")
ENTRIES: tuple[dict[str, Any], ...] = (
    {"name": "k4"},
    {"sae": {"k": 6}, "d_sae": 48},
    {"architecture": "topk", "seed": 1},
    {"seed": 2, "hook_name": HOOKS[1], "lr": 2e-3},
)
NAMES = ["k4", "d_sae=48,k=6", "architecture=topk,seed=1", "seed=2,hook_name=blocks.1.hook_resid_pre,lr=0.002"]
WEIGHTS = "sae_weights.safetensors"


@pytest.fixture
def several(tiny_settings: Callable[..., TrainSettings]) -> Callable[..., TrainSettings]:
    """Blocks of six steps, so that the twenty that are read for the start reach into the last of four blocks."""

    def settings(out: Path, **changes: Any) -> TrainSettings:
        values = {"saes": ENTRIES, "lm_batch_size_sequences": 8, "buffer_size_sequences": 24, "training_tokens": 22 * 4 * 32}
        return tiny_settings(out, **(values | changes))

    return settings


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_settings: Any, tiny_model: Any) -> Path:
    """The four SAEs, each trained alone."""
    out = tmp_path_factory.mktemp("alone")
    values = {"saes": ENTRIES, "lm_batch_size_sequences": 8, "buffer_size_sequences": 24, "training_tokens": 22 * 4 * 32}
    for each in settings_of_each(tiny_settings(out, **values)):
        train_sae(each, tiny_model)
    return out


def same(one: Path, other: Path) -> bool:
    return all((one / name / WEIGHTS).read_bytes() == (other / name / WEIGHTS).read_bytes() for name in NAMES)


def test_each_equals_the_sae_trained_alone_and_the_model_runs_once(
    several: Any, alone: Path, tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, passes = activations.read_hooks, []
    monkeypatch.setattr(activations, "read_hooks", lambda *args, **how: passes.append(args[1]) or read(*args, **how))
    saes = train_saes(settings_of_each(several(tmp_path)), tiny_model)
    assert same(tmp_path, alone)
    assert [sae.cfg.architecture() for sae in saes] == ["mtsae", "mtsae", "topk", "mtsae"]
    assert passes == [HOOKS] * (22 * 4 // 8)
    for name in NAMES:
        assert (tmp_path / name / "cfg.json").read_text() == (alone / name / "cfg.json").read_text()
        assert read_log(tmp_path / name / "training_log.jsonl")[-1]["step"] == 22
    weights = [(tmp_path / name / WEIGHTS).read_bytes() for name in NAMES]
    assert len(set(weights)) == len(NAMES)


@pytest.mark.parametrize("prefetch", [False, True])
def test_from_a_cache_too(prefetch: bool, several: Any, alone: Path, tiny_model: Any, tmp_path: Path) -> None:
    live = several(tmp_path / "run")
    named = ("model", "dataset", "context_size", "lm_batch_size_sequences")
    kept = {name: getattr(live, name) for name in live.model_fields_set - {"out", *named}}
    named_in_cache = {name: getattr(live, name) for name in named}
    run_cache(CacheSettings(**named_in_cache, hook_name=HOOKS, n_tokens=90 * 32, out=tmp_path / "cache"), tiny_model)
    train_saes(settings_of_each(TrainSettings(**kept, cache=tmp_path / "cache", out=tmp_path / "run", prefetch=prefetch)))
    assert same(tmp_path / "run", alone)


@pytest.mark.parametrize("steps", [(3,), (7, 19), (0, 8, 9)])
def test_stopped_and_resumed_together(
    steps: tuple[int, ...], several: Any, alone: Path, tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of_each(several(tmp_path))
    step = SequenceSAETrainer.step
    for at in steps:

        def stopped(trainer: Any, batch: torch.Tensor, at: int = at) -> Any:
            if trainer.n_training_steps == at and trainer.cfg.lr == 1e-3 and trainer.sae.cfg.d_sae == 48:
                signal.raise_signal(signal.SIGINT)
            return step(trainer, batch)

        with monkeypatch.context() as patched:
            patched.setattr(SequenceSAETrainer, "step", stopped)
            with pytest.raises(TrainingInterrupted, match=f"saved at step {at + 1} of 22; --resume continues"):
                train_saes(settings, tiny_model, resume=True)
        assert {path.name for path in tmp_path.glob("*/checkpoints/*")} >= {f"step_{at + 1:09d}"}
    train_saes(settings, tiny_model, resume=True)
    assert same(tmp_path, alone)


def test_saes_that_came_to_different_steps_go_on(several: Any, alone: Path, tiny_model: Any, tmp_path: Path) -> None:
    """As after a kill between two checkpoints, or where one SAE's are damaged."""
    settings = settings_of_each(several(tmp_path))
    train_saes(settings, tiny_model)
    for name, checkpoint in zip(NAMES, ("step_000000022", "step_000000020", None, "step_000000022"), strict=True):
        (tmp_path / name / WEIGHTS).unlink()
        for path in (tmp_path / name / "checkpoints").iterdir():
            if path.name != checkpoint:
                shutil.rmtree(path)
    train_saes(settings, tiny_model, resume=True)
    assert same(tmp_path, alone)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            ({"context_size": 16},),
            "saes: expected settings that may differ within one pass, got context_size; give it once, beside saes",
        ),
        (({"out": "x"},), "saes: expected settings that may differ within one pass, got out"),
        (({"seed": 1}, {"seed": 1}), "saes: expected a different folder name for each entry, got 'seed=1'"),
        (({"name": "../up"},), r"saes: expected a different folder name for each entry, got '\.\./up'"),
        (({"sede": 1},), "expected a known setting, got 'sede'. Did you mean 'seed'"),
        (({"sae": 3},), "saes: expected a mapping under sae, got 3; give such as {k: 16}"),
    ],
)
def test_entries_that_cannot_be_followed_are_refused(entries: Any, message: str, several: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_of_each(several(tmp_path, saes=entries))


def test_saes_that_read_different_texts_are_refused(several: Any, tmp_path: Path) -> None:
    one, other = several(tmp_path / "1", saes=()), several(tmp_path / "2", saes=(), seed=1)
    with pytest.raises(ConfigError, match="expected the same text_seed for all SAEs of one pass, got 0 and 1; make them equal"):
        train_saes([one, other])
    with pytest.raises(ConfigError, match="expected a folder for each SAE, got one twice"):
        train_saes([one, one])


def test_the_command_line(mtsae: Callable[..., Any], several: Any, alone: Path, tmp_path: Path) -> None:
    common = several(tmp_path).model_dump(include={"model", "dataset", "hook_name"})
    config = tmp_path / "many.yaml"
    config.write_text(
        "d_sae: 32\ncontext_size: 32\nbatch_size_tokens: 128\ntraining_tokens: 2816\nlr: 0.001\nlog_every_n_steps: 1\n"
        "checkpoint_every_n_steps: 4\nlm_batch_size_sequences: 8\nbuffer_size_sequences: 24\nsae: {k: 4}\n"
        "saes:\n- name: k4\n- {d_sae: 48, sae: {k: 6}}\n"
    )
    arguments = [word for name, value in common.items() for word in (f"--{name.replace('_', '-')}", value)]
    outcome = mtsae("train", "--config", config, *arguments, "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    for name in NAMES[:2]:
        assert (tmp_path / "run" / name / WEIGHTS).read_bytes() == (alone / name / WEIGHTS).read_bytes()
        assert (tmp_path / "run" / name / "report.html").is_file()
        assert f"saved in {tmp_path / 'run' / name}" in outcome.out
    typed = mtsae(
        "train", *arguments, "--context-size", 32, "--saes", "seed: 1", "--saes", "sed: 2", "--out", tmp_path / "typed"
    )
    assert "expected a known setting, got 'sed'" in typed.error


def test_batchtopk_with_memory_fires_k_times_in_the_true_recursion(several: Any, tiny_model: Any, tmp_path: Path) -> None:
    """Its threshold is searched on contexts of the text, which an SAE in a shared pass reads for itself."""
    memory = {"name": "memory", "sae": {"k": 4, "memory": "predictive", "memory_rank": 4, "activation": "batchtopk"}}
    train_saes(settings_of_each(several(tmp_path / "two", sae={}, saes=(memory, {"name": "k6", "sae": {"k": 6}}))), tiny_model)
    (alone,) = settings_of_each(several(tmp_path / "one", sae={}, saes=(memory,)))
    train_sae(alone, tiny_model)
    assert (tmp_path / "two" / "memory" / WEIGHTS).read_bytes() == (alone.out / WEIGHTS).read_bytes()
    sae, stream = load_sae(alone.out), make_runner(alone, tiny_model, resume=True).stream
    chunks = []
    for h, masked in stream.chunks(0):  # as many as the search reads
        chunks.append(((sae.encode(zero_rows(h, masked)) > 0).sum(), (~masked[:, 1:]).sum(), masked.numel()))
        if sum(n for _, _, n in chunks) >= 16_384:
            break
    n_fired, n_kept, _ = map(sum, zip(*chunks, strict=True))
    assert float(n_fired / n_kept) == pytest.approx(4, rel=0.03)
