"""Several ranks train the SAE that one process trains with the same batches, and only the first of them writes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from several_ranks import free_port, on_ranks

from mtsae_lens.commands import cache as cache_command
from mtsae_lens.commands.cache import run_cache
from mtsae_lens.commands.cache_settings import CacheSettings
from mtsae_lens.commands.train import run_train
from mtsae_lens.data import cache_writer
from mtsae_lens.data.activation_cache import ActivationCache
from mtsae_lens.data.cache_manifest import read_manifest
from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.ranks import Ranks, current_ranks, joined_ranks
from mtsae_lens.training.log import read_log
from mtsae_lens.training.recipe import train_sae
from mtsae_lens.training.settings import TrainSettings
from mtsae_lens.training.several import settings_of_each, train_saes
from mtsae_lens.training.trainer import SequenceSAETrainer

WEIGHTS, LOG = "sae_weights.safetensors", "training_log.jsonl"
CONTEXT = 32
DEAD = {"d_sae": 128, "dead_feature_window": 2}
"""With few active features and this window many are dead."""


@pytest.fixture(scope="module")
def settings(tiny_settings: Callable[..., TrainSettings]) -> Callable[..., TrainSettings]:
    """Six contexts in a batch, four batches in a block, and twelve steps."""

    def make(out: Path, **changes: Any) -> TrainSettings:
        values = {"batch_size_tokens": 6 * CONTEXT, "training_tokens": 12 * 6 * CONTEXT, "buffer_size_sequences": 24}
        return tiny_settings(out, **(values | {"lm_batch_size_sequences": 4} | changes))

    return make


def difference(one: Path, other: Path) -> float:
    """The largest difference of two SAEs, relative to the largest weight."""
    ours, theirs = (load_file(path / WEIGHTS) for path in (one, other))
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max().clamp(min=1e-6)) for name in ours)


ARCHITECTURES = [
    ("mtsae", {"k": 2, "aux_loss_coefficient": 1.0, "dtype": "float64"}, 1e-6),
    ("topk", {"k": 2, "aux_loss_coefficient": 1.0}, 1e-4),
    ("mtsae", {"activation": "relu", "l1_coefficient": 0.1}, 1e-4),
]


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize(("architecture", "sae", "most"), ARCHITECTURES, ids=["mtsae", "topk", "relu"])
def test_ranks_train_what_one_process_trains(
    n: int,
    architecture: str,
    sae: dict[str, Any],
    most: float,
    tmp_path: Path,
    settings: Callable[..., TrainSettings],
    tiny_model: Any,
) -> None:
    changes = {"architecture": architecture, "sae": sae, **DEAD}
    alone = settings(tmp_path / "alone", **changes)
    together = settings(tmp_path / "together", **changes)
    train_sae(alone, tiny_model)
    assert on_ranks(n, tmp_path / "ranks", lambda: train_sae(together, tiny_model)) == [(0, "")] * n
    assert difference(together.out, alone.out) < most
    if sae.get("aux_loss_coefficient"):
        assert read_log(alone.out / LOG)[-1]["losses/auxiliary_reconstruction_loss"] > 0
    for ours, theirs in zip(read_log(together.out / LOG), read_log(alone.out / LOG), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            if not name.startswith("time/") and "legacy" not in name and not name.endswith("_std"):
                assert ours[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_the_comparison_can_fail(tmp_path: Path, settings: Callable[..., TrainSettings], tiny_model: Any) -> None:
    one, other = settings(tmp_path / "one"), settings(tmp_path / "other", text_seed=1)
    train_sae(one, tiny_model)
    train_sae(other, tiny_model)
    assert difference(one.out, other.out) > 1e-2


def cache_settings(settings: Callable[..., TrainSettings], out: Path) -> CacheSettings:
    live = settings(out)
    return CacheSettings(
        model=live.model,
        hook_name=(live.hook_name,),
        dataset=live.dataset,
        context_size=CONTEXT,
        n_tokens=8 * 6 * CONTEXT,  # fewer than the run has, so that an epoch ends in it
        lm_batch_size_sequences=4,
        out=out,
    )


def test_ranks_read_a_cache(tmp_path: Path, settings: Callable[..., TrainSettings], tiny_model: Any) -> None:
    run_cache(cache_settings(settings, tmp_path / "cache"), tiny_model)
    alone, together = (settings(tmp_path / name, cache=tmp_path / "cache") for name in ("alone", "together"))
    train_sae(alone)
    assert on_ranks(3, tmp_path / "ranks", lambda: train_sae(together)) == [(0, "")] * 3
    assert difference(together.out, alone.out) < 1e-4


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two forward passes of the language model make a shard, of which the test's cache has six."""
    describe = cache_command.describe

    def described(given: CacheSettings, model: Any) -> Any:
        return describe(given, model).model_copy(update={"shard_size_sequences": 8})

    monkeypatch.setattr(cache_command, "describe", described)


@pytest.mark.usefixtures("small_shards")
def test_ranks_write_the_cache_of_one_process(tmp_path: Path, settings: Callable[..., TrainSettings], tiny_model: Any) -> None:
    alone, together = (cache_settings(settings, tmp_path / name) for name in ("alone", "together"))
    manifest = run_cache(alone, tiny_model)
    assert manifest.contents.n_shards == 6
    assert on_ranks(3, tmp_path / "ranks", lambda: run_cache(together, tiny_model)) == [(0, "")] * 3
    assert read_manifest(together.out) == manifest
    assert [path.name for path in together.out.glob("cache*.json")] == ["cache.json"]
    ActivationCache.open(together.out).read(alone.hook_name[0], range(48))


@pytest.mark.usefixtures("small_shards")
def test_shards_of_a_killed_rank_are_kept(tmp_path: Path, settings: Callable[..., TrainSettings], tiny_model: Any) -> None:
    given = cache_settings(settings, tmp_path / "cache")
    read_shard = cache_writer._read_shard

    def work() -> None:
        def killed(contents: Any, shard: int, *arguments: Any) -> Any:
            if shard == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return read_shard(contents, shard, *arguments)

        cache_writer._read_shard = killed
        run_cache(given, tiny_model)

    first, second = on_ranks(2, tmp_path / "ranks", work)
    assert second[0] == -signal.SIGKILL
    assert first[0] == 2
    assert first[1].startswith("a rank ended before the others")
    kept = {path.name: path.stat().st_mtime_ns for path in (given.out / given.hook_name[0]).iterdir()}
    assert len(kept) == 5
    assert on_ranks(2, tmp_path / "again", lambda: run_cache(given, tiny_model)) == [(0, "")] * 2
    now = {path.name: path.stat().st_mtime_ns for path in (given.out / given.hook_name[0]).iterdir()}
    assert len(now) == 6
    assert {name: now[name] for name in kept} == kept
    ActivationCache.open(given.out)


@pytest.mark.parametrize("prefetch", [False, True])
def test_all_ranks_end_with_the_same_weights(
    prefetch: bool, tmp_path: Path, settings: Callable[..., TrainSettings], tiny_model: Any
) -> None:
    """Though a batch top-k chooses on each rank by itself."""
    given = settings(tmp_path / "run", sae={"activation": "batchtopk", "k": 3}, prefetch=prefetch)

    def work() -> None:
        sae = train_sae(given, tiny_model)
        torch.save(sae.state_dict(), tmp_path / f"weights{current_ranks().rank}")

    assert on_ranks(2, tmp_path / "ranks", work) == [(0, "")] * 2
    first, second = (torch.load(tmp_path / f"weights{rank}") for rank in range(2))
    assert "topk_threshold" in first
    assert all(torch.equal(first[name], second[name]) for name in first)


# ---------------------------------------------------------------------------------------------- what is written, and resuming


def test_only_the_first_rank_writes(
    tmp_path: Path, settings: Callable[..., TrainSettings], tiny_model: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    given = settings(tmp_path / "run")

    def work() -> None:
        print(f"rank {current_ranks().rank} prints", flush=True)
        assert (run_train(given) is not None) == current_ranks().is_first

    assert on_ranks(2, tmp_path / "ranks", work) == [(0, "")] * 2
    out, errors = capfd.readouterr()
    assert "rank 0 prints" in out
    assert "rank 1" not in out
    assert errors.count("Training mtsae:   0%") == 1
    assert {"cfg.json", WEIGHTS, LOG, "metrics.json", "report.html"} <= {path.name for path in given.out.iterdir()}
    assert [row["step"] for row in read_log(given.out / LOG)] == list(range(1, 13))


def at_step(number: int, rank: int, act: Callable[[], Any]) -> None:
    """Let one rank do something while it takes the step of this number, counted from 0."""
    original = SequenceSAETrainer.step

    def step(trainer: SequenceSAETrainer, batch: torch.Tensor) -> Any:
        if trainer.n_training_steps == number and current_ranks().rank == rank:
            act()
        return original(trainer, batch)

    SequenceSAETrainer.step = step  # type: ignore[method-assign]  # in a fork


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, settings: Callable[..., TrainSettings], tiny_model: Any) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    train_sae(settings(out), tiny_model)
    return out


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_stops_all_after_the_same_step(
    rank: int, alone: Path, tmp_path: Path, settings: Callable[..., TrainSettings], tiny_model: Any
) -> None:
    given = settings(tmp_path / "run")

    def work() -> None:
        at_step(5, rank, lambda: signal.raise_signal(signal.SIGTERM))
        train_sae(given, tiny_model)

    first, second = on_ranks(2, tmp_path / "ranks", work)
    assert first == (2, "saved at step 6 of 12; --resume continues")
    assert second == (128 + signal.SIGTERM, "")
    for n in (1, 2, 3):
        parts = given.model_copy(update={"out": tmp_path / f"resumed{n}"})
        shutil.copytree(given.out, parts.out)
        if n == 1:
            train_sae(parts, tiny_model, resume=True)
        else:
            assert on_ranks(n, tmp_path / f"ranks{n}", lambda: train_sae(parts, tiny_model, resume=True)) == [(0, "")] * n  # noqa: B023
        assert difference(parts.out, alone) < 1e-4
        assert [row["step"] for row in read_log(parts.out / LOG)] == list(range(1, 13))


def test_a_run_of_one_process_goes_on_with_ranks(
    alone: Path, tmp_path: Path, settings: Callable[..., TrainSettings], tiny_model: Any
) -> None:
    shutil.copytree(alone, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_000000012")
    (tmp_path / "run" / WEIGHTS).unlink()
    given = settings(tmp_path / "run")
    assert on_ranks(2, tmp_path / "ranks", lambda: train_sae(given, tiny_model, resume=True)) == [(0, "")] * 2
    assert difference(given.out, alone) < 1e-4


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_rank_that_is_killed_ends_the_run_with_one_message(
    rank: int, alone: Path, tmp_path: Path, settings: Callable[..., TrainSettings], tiny_model: Any
) -> None:
    given = settings(tmp_path / "run")

    def work() -> None:
        at_step(6, rank, lambda: os.kill(os.getpid(), signal.SIGKILL))
        train_sae(given, tiny_model)

    ended = on_ranks(3, tmp_path / "ranks", work)
    assert ended[rank][0] == -signal.SIGKILL
    told = [message for _, message in ended if message]
    assert len(told) == 1 or rank == 0  # the store of the messages ends with the first rank, where torchrun does not hold it
    assert all(message.startswith("a rank ended before the others") and "\n" not in message for message in told)
    assert all(code == 2 for place, (code, _) in enumerate(ended) if place != rank)
    assert [path.name for path in (given.out / "checkpoints").iterdir()] == ["step_000000004"]
    assert on_ranks(2, tmp_path / "again", lambda: train_sae(given, tiny_model, resume=True)) == [(0, "")] * 2
    assert difference(given.out, alone) < 1e-4


def test_ctrl_c_stops_torchrun_with_one_message(
    alone: Path, tmp_path: Path, settings: Callable[..., TrainSettings], tiny_model: Any
) -> None:
    given = settings(tmp_path / "run", training_tokens=4000 * 6 * CONTEXT)
    command = f"-m torch.distributed.run --nproc-per-node 2 --master-port {free_port()} -m mtsae_lens.cli train --model {given.model} "
    command += (
        f"--hook-name {given.hook_name} --dataset {given.dataset} --context-size {CONTEXT} --batch-size-tokens {6 * CONTEXT} "
    )
    command += f"--training-tokens {given.training_tokens} --d-sae 32 --set k=4 --checkpoint-every-n-steps 4 --out {given.out}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, *command.split()],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not list(given.out.glob("checkpoints/step_*")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert errors.count("stopped: saved at step") == 1, errors
    assert "a rank ended before" not in errors


# ---------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sae": {"memory": "predictive", "k": 4}}, "expected memory='none' with 2 ranks"),
        ({"sae": {"dilations": "auto", "k": 4}}, "expected dilations to be given with 2 ranks"),
        ({"batch_size_tokens": CONTEXT}, "got 1 .*give --batch-size-tokens 64 or fewer ranks"),
        ({"device": "cuda:0"}, "expected device cuda with 2 ranks, got cuda:0 for all; give --device cuda"),
    ],
)
def test_what_ranks_cannot_follow_is_one_error(
    changes: dict[str, Any], message: str, tmp_path: Path, settings: Callable[..., TrainSettings], tiny_model: Any
) -> None:
    given = settings(tmp_path / "run", **changes)
    ended = on_ranks(2, tmp_path / "ranks", lambda: train_sae(given, tiny_model))
    assert [code for code, _ in ended] == [2, 2]
    told = [text for _, text in ended if text]
    assert len(told) == 1
    assert re.search(message, told[0])
    assert "\n" not in told[0]


def test_several_saes_in_one_pass_are_refused(tmp_path: Path, settings: Callable[..., TrainSettings], tiny_model: Any) -> None:
    each = settings_of_each(settings(tmp_path / "run", saes=({"seed": 0}, {"seed": 1})))
    ended = on_ranks(2, tmp_path / "ranks", lambda: train_saes(each, tiny_model))
    assert [text.split(",")[0] for _, text in ended if text] == ["expected one SAE with 2 ranks"]


def test_a_failed_rank_tells_and_the_others_end(
    tmp_path: Path, settings: Callable[..., TrainSettings], tiny_model: Any
) -> None:
    given = settings(tmp_path / "run")

    def fail() -> None:
        raise DataError("the text of this rank is gone")

    def work() -> None:
        at_step(3, 1, fail)
        train_sae(given, tiny_model)

    assert on_ranks(2, tmp_path / "ranks", work) == [(2, ""), (2, "the text of this rank is gone")]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "got no RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT; start with torchrun"),
        ({"RANK": "1"}, "got no WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        (
            {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "two", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
            "got a value that is no number",
        ),
    ],
)
def test_an_environment_that_is_not_torchruns(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message), joined_ranks():
        pass


def test_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined_ranks() as ranks:
        assert ranks.is_alone
        assert list(ranks.share(3)) == [0, 1, 2]
        assert ranks.local_device("cuda:1") == "cuda:1"
        assert ranks.tell({"a": 1}) == {"a": 1}


@pytest.mark.parametrize("size", [2, 3, 7])
def test_shares_are_a_partition(size: int) -> None:
    for n in (size, 10, 24):
        shares = [Ranks(rank, size).share(n) for rank in range(size)]
        assert [place for share in shares for place in share] == list(range(n))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
