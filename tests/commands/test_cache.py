"""A cache of activations: what is in it, that it is whole, and that training from it is training live."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from mtsae_lens.commands import cache as command
from mtsae_lens.commands.cache import run_cache
from mtsae_lens.commands.cache_settings import CacheSettings
from mtsae_lens.data import cache_writer
from mtsae_lens.data.activation_cache import ActivationCache
from mtsae_lens.data.cache_manifest import CacheContents, read_manifest
from mtsae_lens.errors import ConfigError, DataError, OutputError, TrainingInterrupted
from mtsae_lens.training import recipe
from mtsae_lens.training.fit import fit
from mtsae_lens.training.recipe import TrainSettings, train_sae

HOOKS = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
CONTEXT, WIDTH, CHUNK = 32, 32, 8
N_CONTEXTS = 56  # seven forward passes; the text has fewer contexts, so a part of it is read twice
CONTEXT_BYTES = CONTEXT * WIDTH * 4


@pytest.fixture(scope="module")
def cache_settings(tiny_model_dir: Path, text_file: Path) -> Callable[..., CacheSettings]:
    def settings(out: Path, **changes: Any) -> CacheSettings:
        values: dict[str, Any] = {
            "model": str(tiny_model_dir),
            "hook_name": HOOKS,
            "dataset": str(text_file),
            "n_tokens": N_CONTEXTS * CONTEXT - 5,
            "context_size": CONTEXT,
            "lm_batch_size_sequences": CHUNK,
            "out": out,
        }
        return CacheSettings(**(values | changes))

    return settings


@pytest.fixture(autouse=True, scope="module")
def _small_shards() -> Iterator[None]:
    """Shards of two forward passes, four in all; a setting of whole megabytes would need large texts."""
    original = command.describe

    def small(*args: Any) -> CacheContents:
        contents = original(*args)
        return contents.model_copy(update={"shard_size_sequences": 2 * contents.lm_batch_size_sequences})

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(command, "describe", small)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, cache_settings: Callable[..., CacheSettings], tiny_model: Any) -> Path:
    out = tmp_path_factory.mktemp("cache") / "both"
    run_cache(cache_settings(out), tiny_model)
    return out


@pytest.fixture
def cache(made: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(made, tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def training(tiny_settings: Callable[..., TrainSettings]) -> Callable[..., TrainSettings]:
    """Settings of a live run over 48 contexts, in blocks that are no multiple of a forward pass."""
    return lambda out, **changes: tiny_settings(
        out, **({"lm_batch_size_sequences": CHUNK, "buffer_size_sequences": 24, "batch_size_tokens": 3 * CONTEXT} | changes)
    )


def cached(live: TrainSettings, cache: Path, out: Path, **changes: Any) -> TrainSettings:
    """The same run from a cache: neither model nor text is named."""
    named = {"model", "dataset", "context_size", "lm_batch_size_sequences"}
    kept = {name: getattr(live, name) for name in live.model_fields_set - named}
    return TrainSettings(**(kept | {"cache": cache, "out": out} | changes))


def weights(out: Path) -> bytes:
    return (out / "sae_weights.safetensors").read_bytes()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("architecture", ["mtsae", "topk"])
@pytest.mark.parametrize("hook", HOOKS)
def test_training_from_a_cache_gives_the_weights_of_the_live_run(
    architecture: str, hook: str, made: Path, training: Any, tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = training(tmp_path / "live", architecture=architecture, hook_name=hook)
    train_sae(live, tiny_model)
    monkeypatch.setattr(recipe, "load_language_model", None)  # it is not loaded
    train_sae(cached(live, made, tmp_path / "cached"))
    assert weights(tmp_path / "cached") == weights(tmp_path / "live")
    assert (tmp_path / "cached" / "cfg.json").read_text() == (tmp_path / "live" / "cfg.json").read_text()
    train_sae(cached(live, made, tmp_path / "other", seed=1))
    assert weights(tmp_path / "other") != weights(tmp_path / "live")


def test_another_seed_on_the_same_text(made: Path, training: Any, tiny_model: Any, tmp_path: Path) -> None:
    live = training(tmp_path / "live", hook_name=HOOKS[0], seed=3, text_seed=0)
    train_sae(live, tiny_model)
    train_sae(cached(live, made, tmp_path / "cached"))
    assert weights(tmp_path / "cached") == weights(tmp_path / "live")


def test_the_files_hold_tokens_masks_and_activations_in_order(made: Path, tiny_model: Any) -> None:
    cache = ActivationCache.open(made)
    contents = cache.contents
    assert (contents.n_contexts, contents.n_shards) == (N_CONTEXTS, 4)
    every = range(N_CONTEXTS)
    tokens, masked = cache.tokens(every), cache.masked(every)
    assert masked[:, 0].all()
    assert not masked[:, 1:].all()
    for hook in HOOKS:
        _, found = tiny_model.run_with_cache(tokens, names_filter=[hook], prepend_bos=False)
        h = cache.read(hook, every)
        assert not h[masked].any()
        torch.testing.assert_close(h[~masked], found[hook][~masked], atol=1e-5, rtol=1e-5)
        picked = torch.tensor([40, 3, 17])
        assert torch.equal(cache.read(hook, picked), h[picked])
    for wrong in (range(N_CONTEXTS + 1), range(3, 3), torch.tensor([-1])):
        with pytest.raises(DataError, match=f"expected contexts from 0 to {N_CONTEXTS - 1}, got"):
            cache.tokens(wrong)
    sizes = sum(path.stat().st_size for path in made.rglob("*.safetensors"))
    assert contents.n_bytes() <= sizes < contents.n_bytes() + 12 * 400  # headers


def test_epochs_and_seeds_have_orders_of_their_own(made: Path) -> None:
    cache = ActivationCache.open(made)

    def epochs(seed: int) -> list[torch.Tensor]:
        stream = cache.stream(HOOKS[0], batch_size_sequences=N_CONTEXTS, block_size_batches=1, seed=seed)
        return [block.h[:, 1] for block in islice(stream.blocks(0), 3)]

    first, other = epochs(0), epochs(1)
    assert torch.equal(first[0], cache.read(HOOKS[0], range(N_CONTEXTS))[:, 1])
    seen = [*first, *other]
    assert all(torch.equal(h.sort(dim=0).values, seen[0].sort(dim=0).values) for h in seen)
    assert len({h.numpy().tobytes() for h in seen}) == 6


def test_blocks_have_the_masks_of_the_cache_in_every_order(made: Path) -> None:
    cache = ActivationCache.open(made)
    assert len(cache.masked(range(N_CONTEXTS)).unique(dim=0)) > 1
    for seed in (0, 1):
        block = next(cache.stream(HOOKS[0], N_CONTEXTS, block_size_batches=1, seed=seed).blocks(0))
        assert torch.equal(block.masked, (block.h == 0).all(dim=-1))  # as the activations were written


def test_a_run_of_several_epochs_resumes_exactly(
    made: Path, training: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mtsae_lens.training.trainer import SequenceSAETrainer

    live = training(tmp_path, hook_name=HOOKS[0], training_tokens=3 * N_CONTEXTS * CONTEXT)
    train_sae(cached(live, made, tmp_path / "whole"))
    step = SequenceSAETrainer.step

    def stopped(trainer: Any, batch: torch.Tensor) -> Any:
        if trainer.n_training_steps == 30:  # in the second epoch
            signal.raise_signal(signal.SIGINT)
        return step(trainer, batch)

    parts = cached(live, made, tmp_path / "parts")
    with monkeypatch.context() as patched:
        patched.setattr(SequenceSAETrainer, "step", stopped)
        with pytest.raises(TrainingInterrupted, match="saved at step 31"):
            train_sae(parts)
    train_sae(parts, resume=True)
    assert weights(parts.out) == weights(tmp_path / "whole")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_takes_half_the_room(
    dtype: str, made: Path, cache_settings: Any, tiny_model: Any, tmp_path: Path
) -> None:
    run_cache(cache_settings(tmp_path / "half", storage_dtype=dtype), tiny_model)
    half, full = ActivationCache.open(tmp_path / "half"), ActivationCache.open(made)
    h, exact = (cache.read(HOOKS[0], range(N_CONTEXTS)) for cache in (half, full))
    assert torch.equal(h, exact.to(h.dtype))
    assert h.dtype == getattr(torch, dtype)
    assert half.contents.n_bytes() < 0.55 * full.contents.n_bytes()
    assert next(half.stream(HOOKS[0], 4).blocks(0)).h.dtype == torch.float32


def test_activations_that_float16_cannot_hold_are_refused(
    cache_settings: Any, tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = cache_writer.read_hooks
    monkeypatch.setattr(cache_writer, "read_hooks", lambda *args: [1e6 * h for h in read(*args)])
    with pytest.raises(DataError, match=r"at most 65,504, the limit of float16, got .*; give --storage-dtype bfloat16"):
        run_cache(cache_settings(tmp_path / "half", storage_dtype="float16"), tiny_model)


@pytest.mark.parametrize("at", [0, 1, 3, 6])
def test_a_cache_that_is_stopped_goes_on_with_the_missing_shards(
    at: int, made: Path, cache_settings: Any, tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, passes = cache_writer.read_hooks, list[int]()

    def stopped(*args: Any) -> Any:
        passes.append(1)
        if len(passes) == at + 1:
            signal.raise_signal(signal.SIGTERM)
        return read(*args)

    settings = cache_settings(tmp_path / "cache")
    with monkeypatch.context() as patched:
        patched.setattr(cache_writer, "read_hooks", stopped)
        with pytest.raises(
            TrainingInterrupted, match="shards that are complete are kept; run the same command to resume"
        ) as stop:
            run_cache(settings, tiny_model)
        assert stop.value.signal_number == signal.SIGTERM
        assert len(read_manifest(settings.out).complete_shards()) == at // 2
        with pytest.raises(DataError, match=f"expected 4 shards, got {at // 2}; finish the cache with mtsae cache --out"):
            ActivationCache.open(settings.out)
        passes.clear()
        passes.extend([1] * 100)
        run_cache(CacheSettings(out=settings.out), tiny_model)  # the folder knows its settings
    assert len(passes) == 100 + 7 - 2 * (at // 2)
    assert files(settings.out) == files(made)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_a_damaged_shard_is_not_read_and_is_made_again(
    how: str, cache: Path, made: Path, training: Any, tiny_model: Any, tmp_path: Path, mtsae: Callable[..., Any]
) -> None:
    path = cache / HOOKS[0] / "shard_00002.safetensors"
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        damage(path)
    live = training(tmp_path, hook_name=HOOKS[0])
    with pytest.raises(
        DataError, match=rf"shard_00002\.safetensors is damaged .*; make it again with mtsae cache --out {cache}"
    ):
        train_sae(cached(live, cache, tmp_path / "run"))
    outcome = mtsae(
        "train", "--cache", cache, "--hook-name", HOOKS[0], "--batch-size-tokens", 3 * CONTEXT, "--out", tmp_path / "cli"
    )
    assert outcome.code == 2
    assert "shard_00002.safetensors is damaged" in outcome.error
    run_cache(CacheSettings(out=cache), tiny_model)
    assert files(cache) == files(made)


def test_a_damaged_manifest_is_refused(cache: Path) -> None:
    manifest = cache / "cache.json"
    content = json.loads(manifest.read_text())
    content["contents"]["seed"] = 9
    manifest.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"cache\.json: .*damaged.*; delete .* and make the cache again with mtsae cache"):
        ActivationCache.open(cache)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hook_name": "blocks.1.hook_resid_pre"},
            "expected a hook of this cache, got 'blocks.1.hook_resid_pre'. Did you mean",
        ),
        ({"model": "embedded"}, "expected model='.*bert-t5-gemma', that of the cache in .*, got 'embedded'; leave it out"),
        ({"dataset": "kjv"}, "expected dataset='.*land.txt', that of the cache in .*, got 'kjv'; leave it out"),
        ({"context_size": 16}, "expected context_size=32, that of the cache in .*, got 16; leave it out"),
        ({"prepend_bos": False}, "expected prepend_bos=True, that of the cache in .*, got False"),
        ({"dtype": "bfloat16"}, "expected dtype='float32', that of the cache in .*, got 'bfloat16'"),
        ({"packed": False}, "expected packed=True, that of the cache in .*, got False"),
    ],
)
def test_a_cache_of_something_else_is_refused(
    changes: dict[str, Any], message: str, made: Path, training: Any, tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        train_sae(cached(training(tmp_path, hook_name=HOOKS[0]), made, tmp_path / "run", **changes))


def test_of_several_hooks_one_is_chosen(made: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=rf"expected one hook of the cache in .* \({HOOKS[0]}, {HOOKS[1]}\), got none; give --hook-name {HOOKS[0]}",
    ):
        train_sae(TrainSettings(cache=made, out=tmp_path / "run"))


def test_a_text_or_model_that_has_changed_is_refused(
    cache_settings: Any, tiny_model: Any, tmp_path: Path, text_file: Path, tiny_model_dir: Path
) -> None:
    text, model = tmp_path / "land.txt", tmp_path / "model"
    shutil.copy(text_file, text)
    shutil.copytree(tiny_model_dir, model)
    settings = cache_settings(tmp_path / "cache", dataset=str(text), model=str(model))
    run_cache(settings, tiny_model)
    for path in (text, model / "config.json"):
        before = path.read_bytes()
        path.write_bytes(before + b" ")
        with pytest.raises(DataError, match=f"expected {path if path == text else model} as it was .*, got other contents"):
            ActivationCache.open(settings.out)
        path.write_bytes(before)
        ActivationCache.open(settings.out)
    shutil.rmtree(model)  # a cache may be used where the model is not
    ActivationCache.open(settings.out)


def test_resuming_from_another_cache_is_refused(
    made: Path, training: Any, cache_settings: Any, tiny_model: Any, tmp_path: Path
) -> None:
    run_cache(cache_settings(tmp_path / "other", seed=1), tiny_model)
    live = training(tmp_path, hook_name=HOOKS[0])
    train_sae(cached(live, made, tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"made with other settings \(cache: "):
        train_sae(cached(live, tmp_path / "other", tmp_path / "run"), resume=True)
    shutil.copytree(made, tmp_path / "moved")
    train_sae(cached(live, tmp_path / "moved", tmp_path / "run"), resume=True)


def test_a_cache_with_other_settings_is_not_written_over(made: Path, cache_settings: Any, tiny_model: Any) -> None:
    before = files(made)
    with pytest.raises(
        ConfigError, match=r"expected a cache with the same settings, got others \(seed: 0 there, 1 now\); give another --out"
    ):
        run_cache(cache_settings(made, seed=1), tiny_model)
    assert files(made) == before


def test_the_size_is_said_first_and_a_full_disk_is_refused(
    cache_settings: Any, tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run_cache(cache_settings(tmp_path / "fits"), tiny_model)
    assert (
        "1,792 tokens at blocks.0.hook_resid_post, blocks.1.hook_resid_post: 467.7 kB in 4 shards; 4 to write"
        in capsys.readouterr().err
    )
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(cache_writer.shutil, "disk_usage", lambda _: usage._replace(free=400_000))
    monkeypatch.setattr(cache_writer, "read_hooks", None)  # nothing is read
    with pytest.raises(OutputError, match=r"expected 467\.7 kB of free space for the cache, got 400\.0 kB; give fewer"):
        run_cache(cache_settings(tmp_path / "full"), tiny_model)
    assert not (tmp_path / "full").exists()


@pytest.mark.parametrize("architecture", ["mtsae", "topk"])
def test_a_cache_feeds_fit(architecture: str, made: Path, tiny_settings: Any, tmp_path: Path) -> None:
    from sae_lens import TrainingSAE

    cfg = recipe.sae_config(tiny_settings(tmp_path, architecture=architecture), WIDTH)
    sae = TrainingSAE.from_dict(cfg.to_dict())
    stream = ActivationCache.open(made).stream(HOOKS[1], batch_size_sequences=4)
    before = sae.W_dec.detach().clone()
    fit(sae, stream, n_steps=5, batch_size_tokens=4 * CONTEXT, lr=1e-3)
    assert not torch.equal(sae.W_dec, before)


def test_the_command_line(mtsae: Callable[..., Any], tiny_model_dir: Path, text_file: Path, tmp_path: Path) -> None:
    arguments = [
        "--model",
        tiny_model_dir,
        "--dataset",
        text_file,
        "--hook-name",
        HOOKS[0],
        "--context-size",
        CONTEXT,
        "--n-tokens",
        2000,
    ]
    outcome = mtsae("cache", *arguments, "--out", tmp_path / "cache")
    assert outcome.code == 0, outcome.err
    assert f"train with mtsae train --cache {tmp_path / 'cache'}" in outcome.out
    trained = mtsae(
        "train",
        "--cache",
        tmp_path / "cache",
        "--d-sae",
        32,
        "--set",
        "k=4",
        "--training-tokens",
        4096,
        "--out",
        tmp_path / "run",
    )
    assert trained.code == 0, trained.err
    assert "at blocks.0.hook_resid_post of" in (tmp_path / "run" / "report.html").read_text()
