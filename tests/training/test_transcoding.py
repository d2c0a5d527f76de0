"""Test the training of a transcoder: pairs aligned by position, live and from a cache, the start, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CONTEXT, HOOK, Outcome
from stored import position_0, stored
from torch import Tensor

from mtsae_lens import MTTrainingTranscoder, MTTrainingTranscoderConfig, TrainSettings, train_sae, train_saes
from mtsae_lens.commands.cache import run_cache
from mtsae_lens.commands.cache_settings import CacheSettings
from mtsae_lens.data.activations import read_hooks
from mtsae_lens.data.blocks import StoredBlocks
from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.masks import zero_rows
from mtsae_lens.errors import ConfigError, DataError, ModelError
from mtsae_lens.opening import load_sae
from mtsae_lens.sealed import read_tensors
from mtsae_lens.training.dilations import select_dilations
from mtsae_lens.training.fit import batches_for, fit, gather_pairs
from mtsae_lens.training.recipe import make_runner, runner_config
from mtsae_lens.training.runner import SequenceSAETrainingRunner

OUT = "blocks.1.hook_attn_out"
D_IN = 32
Make = Callable[..., TrainSettings]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, text_file: Path) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "both"
    settings = CacheSettings(
        model=str(tiny_model_dir),
        dataset=str(text_file),
        hook_name=(HOOK, OUT),
        context_size=CONTEXT,
        n_tokens=12 * 4 * CONTEXT,
        out=folder,
    )
    run_cache(settings)
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    return read_tensors(folder / "sae_weights.safetensors", "")[0]


def test_live_pairs_are_the_two_hooks_at_the_same_position(
    tiny_settings: Make, tiny_model: Any, cutter: ContextCutter, tmp_path: Path
) -> None:
    runner = make_runner(tiny_settings(tmp_path, hook_name_out=OUT), tiny_model)
    assert isinstance(runner.sae, MTTrainingTranscoder)
    block = next(runner.stream.blocks(0))
    h = block.h
    tokens = torch.tensor([context for context, _ in zip(runner.stream.contexts, range(len(h)), strict=False)])  # type: ignore[union-attr]
    x, y = read_hooks(tiny_model, [HOOK, OUT], tokens)
    assert torch.equal(block.masked, cutter.masked(tokens))
    torch.testing.assert_close(h, zero_rows(torch.cat([x, y], dim=-1), block.masked))
    rows = torch.tensor([5, CONTEXT + 9])
    gathered = gather_pairs(runner.sae, h, block.masked)(rows)
    torch.testing.assert_close(gathered[:, :D_IN], x.flatten(0, 1)[rows])
    torch.testing.assert_close(gathered[:, -D_IN:], y.flatten(0, 1)[rows])
    offset = runner.sae.read_offsets.index(-2)
    torch.testing.assert_close(gathered[:, offset * D_IN : (offset + 1) * D_IN], x.flatten(0, 1)[rows - 2])


def test_a_cache_of_both_hooks_gives_the_weights_of_the_live_run(tiny_settings: Make, cache: Path, tmp_path: Path) -> None:
    live = train_sae(tiny_settings(tmp_path / "live", hook_name_out=OUT))
    cached = tiny_settings(tmp_path / "cached", hook_name_out=OUT, cache=cache)
    train_sae(cached)
    several = [
        tiny_settings(tmp_path / name, cache=cache, **hooks)
        for name, hooks in (("both", {"hook_name_out": OUT}), ("one", {"hook_name": OUT}))
    ]
    train_saes(several)
    expected = weights(tmp_path / "live")
    for name in ("cached", "both"):
        for key, tensor in weights(tmp_path / name).items():
            assert torch.equal(tensor, expected[key]), (name, key)
    loaded = load_sae(tmp_path / "live")
    assert loaded.cfg.metadata.hook_name_out == OUT
    assert loaded.cfg.metadata.hook_name == HOOK
    assert live.cfg.architecture() == "mtsae_transcoder"


def test_training_goes_on_from_a_checkpoint_of_the_same_output_alone(tiny_settings: Make, cache: Path, tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path / "whole", hook_name_out=OUT, cache=cache)
    train_sae(settings)
    newest = sorted((tmp_path / "whole" / "checkpoints").iterdir())[-1]
    for folder in (tmp_path / "whole" / "checkpoints").iterdir():
        if folder == newest:
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
    expected = weights(tmp_path / "whole")
    train_sae(settings, resume=True)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in weights(tmp_path / "whole").items())
    with pytest.raises(ConfigError, match=r"hook_name_out: 'blocks\.1\.hook_attn_out' then"):
        train_sae(tiny_settings(tmp_path / "whole", hook_name_out=HOOK, hook_name=OUT, cache=cache), resume=True)


def planted(n: int = 64, size: int = 16) -> Tensor:
    """Contexts where the other hook holds what the first one held a position before, scaled, about another mean."""
    generator = torch.Generator().manual_seed(0)
    x = torch.eye(8)[torch.randint(8, (n, size), generator=generator)] * (1 + torch.rand(n, size, 1, generator=generator)) + 2.0
    y = 30 * x.roll(1, dims=1) + 500.0
    h = torch.cat([x, y], dim=-1)
    h[:, 0] = 0.0
    h[:, 1, 8:] = 500.0 + 60.0  # nothing is read there: the other hook is at a constant
    return h


def train(h: Tensor, n_steps: int = 60, **changes: Any) -> MTTrainingTranscoder:
    torch.manual_seed(0)
    values: dict[str, Any] = {"k": 1, "context_size": h.shape[1], "scale_norm": "none", "context_gain": 1.0, "kernel_size": 2}
    cfg = MTTrainingTranscoderConfig(
        d_in=8, d_out=8, d_sae=32, normalize_activations="expected_average_only_in", **(values | changes)
    )
    sae = MTTrainingTranscoder(cfg)
    fit(sae, stored(h, batch_size_sequences=16, block_size_batches=4), n_steps=n_steps, batch_size_tokens=16 * 16, lr=1e-2)
    return sae


def explained(sae: MTTrainingTranscoder, h: Tensor) -> float:
    x, y = h[..., :8], h[..., 8:]
    out = sae.decode(sae.encode(x))
    y, out = y[:, 2:], out[:, 2:]
    return float(1 - (y - out).pow(2).sum() / (y - y.mean(dim=(0, 1))).pow(2).sum())


@torch.no_grad()
def test_a_temporal_one_learns_what_only_the_past_says() -> None:
    h = planted()
    with torch.enable_grad():
        temporal, pointwise = train(h, dilations=(0, 1)), train(h, dilations=(0,))
    assert explained(temporal, h) > 0.8
    assert abs(explained(pointwise, h)) < 0.1


def test_massive_and_masked_positions_of_either_hook_are_left_out() -> None:
    h = planted()
    h[2, 5, :8] *= 100
    h[3, 6, 8:] *= 100
    masked = position_0(h)
    masked[4, 7] = True
    h[4, 7] = 7.0  # as long as other rows
    sae = MTTrainingTranscoder(MTTrainingTranscoderConfig(d_in=8, d_out=8, d_sae=32, k=1, context_size=16, dilations=(0,)))
    stream = StoredBlocks(h, batch_size_sequences=16, block_size_batches=4, masked=masked)
    batches = batches_for(sae, stream, 10.0)(0)
    rows = torch.cat([next(batches) for _ in range(4)])
    assert len(rows) == 64 * 15 - 3
    assert rows[:, :8].abs().max() < 100
    assert rows[:, 8:].abs().max() < 1000
    assert not (rows == 7.0).all(dim=-1).any()


def test_it_starts_at_the_means_and_scales_of_both_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    h = planted()
    rows = h.flatten(0, 1)[(h != 0).any(dim=-1).flatten()]
    seen: list[dict[str, Tensor]] = []
    original = MTTrainingTranscoder.training_forward_pass

    def keep(sae: MTTrainingTranscoder, step_input: Any) -> Any:
        seen.append({name: tensor.detach().clone() for name, tensor in sae.state_dict().items()})
        return original(sae, step_input)

    monkeypatch.setattr(MTTrainingTranscoder, "training_forward_pass", keep)
    train(h, n_steps=1)
    s_x, s_y = (8**0.5 / part.norm(dim=-1).mean() for part in (rows[:, :8], rows[:, 8:]))
    torch.testing.assert_close(seen[0]["b_in"], s_x * rows[:, :8].mean(dim=0), rtol=0.05, atol=0.02)
    torch.testing.assert_close(seen[0]["b_dec"], s_y * rows[:, 8:].mean(dim=0), rtol=0.05, atol=0.02)
    torch.testing.assert_close(seen[0]["output_scale"], s_y / s_x, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "mtsae_transcoder"}, "expected the hook that architecture 'mtsae_transcoder' decodes, got none"),
        ({"architecture": "topk", "hook_name_out": OUT}, "expected architecture 'mtsae' with --hook-name-out"),
        ({"hook_name_out": HOOK}, "expected another hook than --hook-name"),
        ({"hook_name_out": "blocks.7.hook_attn_out"}, "blocks.7.hook_attn_out"),
    ],
    ids=["no output", "pointwise architecture", "same hook", "unknown hook"],
)
def test_a_hook_that_cannot_be_decoded_is_refused(
    tiny_settings: Make, tmp_path: Path, tiny_model: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((ConfigError, ModelError), match=message):
        make_runner(tiny_settings(tmp_path, **changes), tiny_model)


def test_a_cache_without_the_hook_or_of_another_model_is_refused(
    tiny_settings: Make, cache: Path, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"expected a hook of this cache, got 'blocks\.0\.hook_attn_out'"):
        make_runner(tiny_settings(tmp_path, hook_name_out="blocks.0.hook_attn_out", cache=cache))
    with pytest.raises(ConfigError, match="expected model="):
        make_runner(tiny_settings(tmp_path, hook_name_out=OUT, cache=cache, model=str(tiny_llama_dir)))


def test_the_runner_refuses_a_transcoder_that_does_not_name_its_output(
    tiny_settings: Make, tiny_model: Any, tmp_path: Path
) -> None:
    cfg = runner_config(tiny_settings(tmp_path, hook_name_out=OUT), D_IN, D_IN)
    cfg.sae.metadata.hook_name_out = None
    with pytest.raises(ConfigError, match="names the hook that it decodes"):
        SequenceSAETrainingRunner(cfg, override_model=tiny_model)
    cfg = runner_config(tiny_settings(tmp_path, hook_name_out=OUT), D_IN, D_IN + 1)
    with pytest.raises(ModelError, match="expected width d_out=33"):
        SequenceSAETrainingRunner(cfg, override_model=tiny_model)


def test_hooks_in_the_other_order_are_refused(tiny_settings: Make, tiny_model: Any, tmp_path: Path) -> None:
    turned = tiny_settings(tmp_path, hook_name="blocks.1.hook_resid_pre", hook_name_out="blocks.0.hook_attn_out")
    with pytest.raises(
        ModelError, match=r"from blocks\.1\.hook_resid_pre to blocks\.0\.hook_attn_out, which the model runs first"
    ):
        make_runner(turned, tiny_model)


def test_the_command_line_trains_one(
    mtsae: Callable[..., Outcome], tiny_model_dir: Path, text_file: Path, sea_file: Path, tmp_path: Path
) -> None:
    common = ("--model", tiny_model_dir, "--dataset", text_file, "--context-size", CONTEXT, "--d-sae", 32, "--set", "k=4")
    few = ("--training-tokens", 8 * 4 * CONTEXT, "--batch-size-tokens", 4 * CONTEXT)
    done = mtsae("train", "--hook-name", HOOK, "--hook-name-out", OUT, *common, *few, "--out", tmp_path / "sae")
    assert done.code == 0, done.err
    assert f"from {HOOK} to {OUT}" in (tmp_path / "sae" / "report.html").read_text()
    tried = (
        "--n-features",
        2,
        "--multipliers",
        1.0,
        "--false-positive-rates",
        "null",
        "--min-ratio",
        0.5,
        "--n-random-draws",
        1,
    )
    budgets = ("--far-budget", 50, "--contexts-per-split", 4, "--scores", "frequency_ratio")
    roles = ("--forget", sea_file, "--retain", text_file)
    done = mtsae("unlearn", tmp_path / "sae", *roles, *tried, *budgets, "--out", tmp_path / "unlearn")
    assert done.code == 0, done.err
    assert f"from {HOOK} to {OUT}" in (tmp_path / "unlearn" / "report.html").read_text()
    edit = ("--edit", tmp_path / "unlearn" / "edit.json")
    done = mtsae("generate", tmp_path / "sae", *edit, "--prompt", "It is said that", "--max-new-tokens", 3)
    assert done.code == 0, done.err
    refused = mtsae(
        "export", tmp_path / "sae", *edit, "--forget", sea_file, "--retain", text_file, "--out", tmp_path / "export"
    )
    assert f"got a mtsae_transcoder from {HOOK} to {OUT}" in refused.error


def test_dilations_are_selected_from_the_hook_that_is_read(tiny_settings: Make, tiny_model: Any, tmp_path: Path) -> None:
    """And the block that was read for it is the first one of training."""
    settings = tiny_settings(tmp_path, hook_name_out=OUT, sae={"k": 4, "dilations": "auto"})
    runner = make_runner(settings, tiny_model)
    block = next(make_runner(tiny_settings(tmp_path, hook_name_out=OUT), tiny_model).stream.blocks(0))
    n_dilations = len(runner.sae.cfg.dilations) - 1
    assert tuple(runner.sae.cfg.dilations) == select_dilations(block.h[..., :D_IN], block.masked, n_dilations, kernel_size=3)
    assert torch.equal(next(runner.stream.blocks(0)).h, block.h)
