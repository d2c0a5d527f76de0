"""Test that `fit` trains as the runner does, on any blocks."""

from __future__ import annotations

import copy
from functools import partial
from itertools import islice
from typing import Any

import pytest
import torch
from sae_lens import LoggingConfig, TopKTrainingSAE, TopKTrainingSAEConfig, TrainingSAE
from sae_lens.config import LanguageModelSAERunnerConfig
from stored import position_0, stored

from mtsae_lens import MTTrainingSAE, MTTrainingSAEConfig
from mtsae_lens.data.blocks import StoredBlocks
from mtsae_lens.errors import DataError
from mtsae_lens.sae.pointwise_step import take_sparse_step
from mtsae_lens.sae.temporal import find_walls, gather_reads
from mtsae_lens.training import trainer
from mtsae_lens.training.fit import batches_for, fit
from mtsae_lens.training.options import TrainerOptions
from mtsae_lens.training.runner import SequenceSAETrainingRunner

POS, D_IN, STEPS = 16, 6, 12
CONFIGS = {"mtsae": MTTrainingSAEConfig, "topk": TopKTrainingSAEConfig}
CLASSES: dict[str, Any] = {"mtsae": MTTrainingSAE, "topk": TopKTrainingSAE}


def make_sae(architecture: str = "mtsae", **settings: Any) -> Any:
    if architecture == "mtsae":
        settings = {"context_size": POS, "dilations": (0, 1, 2)} | settings
    torch.manual_seed(0)
    return CLASSES[architecture](CONFIGS[architecture](d_in=D_IN, d_sae=12, k=3, **settings))


def make_stream(n: int = 20) -> StoredBlocks:
    generator = torch.Generator().manual_seed(1)
    h = torch.randn(n, POS, 3, generator=generator) @ torch.randn(3, D_IN, generator=generator)
    h[:, 0] = 0
    return stored(h, batch_size_sequences=2, block_size_batches=4)


def same(one: Any, other: Any) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("normalize", ["none", "expected_average_only_in"])
def test_fit_is_what_the_runner_does(
    architecture: str, normalize: str, tiny_model: Any, tiny_model_dir: Any, text_file: Any
) -> None:
    settings = {"d_in": 32, "d_sae": 24, "k": 4, "normalize_activations": normalize}
    if architecture == "mtsae":
        settings["context_size"] = POS
    cfg: Any = LanguageModelSAERunnerConfig(
        sae=CONFIGS[architecture](**settings),
        model_name=str(tiny_model_dir),
        hook_name="blocks.0.hook_resid_post",
        dataset_path=str(text_file),
        context_size=POS,
        training_tokens=STEPS * 4 * POS,
        train_batch_size_tokens=4 * POS,
        store_batch_size_prompts=4,
        n_batches_in_buffer=3,
        lr=1e-2,
        lr_end=1e-4,
        lr_scheduler_name="cosineannealing",
        lr_warm_up_steps=5,
        dead_feature_window=4,
        n_batches_for_norm_estimate=20,
        output_path=None,
        autocast=False,
        autocast_lm=False,
        device="cpu",
        logger=LoggingConfig(log_to_wandb=False),
    )
    options = TrainerOptions(weight_decay=0.01)
    runner = SequenceSAETrainingRunner(cfg, override_model=tiny_model, options=options)
    start = copy.deepcopy(runner.sae)
    trained = runner.run()
    fitted = fit(
        copy.deepcopy(start),
        runner.stream,
        n_steps=STEPS,
        batch_size_tokens=4 * POS,
        lr=1e-2,
        lr_end=1e-4,
        lr_warm_up_steps=5,
        dead_feature_window=4,
        options=options,
    )
    assert same(fitted, trained)
    assert not same(fitted, start)
    assert fitted.cfg.normalize_activations == trained.cfg.normalize_activations == "none"


@pytest.mark.parametrize("changes", [{"lr": 2e-3}, {"n_steps": STEPS - 1}, {"lr_warm_up_steps": 3}, {"lr_end": 1e-3}], ids=str)
def test_every_setting_counts(changes: dict[str, Any]) -> None:
    settings = {"n_steps": STEPS, "batch_size_tokens": 2 * POS, "lr": 1e-2}
    one, again, other = (fit(make_sae(), make_stream(), **(settings | more)) for more in ({}, {}, changes))
    assert same(one, again)
    assert not same(one, other)


@pytest.mark.parametrize("warm_up", [1, STEPS - 1, STEPS, STEPS + 1, 10 * STEPS])
def test_a_warm_up_may_be_longer_than_training(warm_up: int) -> None:
    start = make_sae()
    found = fit(make_sae(), make_stream(), n_steps=STEPS, batch_size_tokens=2 * POS, lr=1e-2, lr_warm_up_steps=warm_up)
    assert all(parameter.isfinite().all() for parameter in found.parameters())
    assert not same(found, start)


def test_a_warm_up_that_never_ends_is_a_line() -> None:
    """With ten times the steps and the rate, the rate is the same at every step."""
    settings = {"n_steps": STEPS, "batch_size_tokens": 2 * POS}
    short = fit(make_sae(), make_stream(), **settings, lr=1e-2, lr_warm_up_steps=2 * STEPS)
    long = fit(make_sae(), make_stream(), **settings, lr=1e-1, lr_warm_up_steps=20 * STEPS)
    for one, other in zip(short.parameters(), long.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=0)


def test_the_sae_is_changed_in_place_and_learns() -> None:
    sae, stream = make_sae(), make_stream()
    h = stream.h

    def error() -> torch.Tensor:
        return (sae(h) - h)[:, 1:].pow(2).mean()

    before = error()
    assert fit(sae, stream, n_steps=60, batch_size_tokens=2 * POS, lr=1e-2) is sae
    assert error() < 0.7 * before


@pytest.mark.parametrize("options", [{}, {"learn_dilations": True, "max_lag": 6}, {"padding": "circular"}], ids=str)
def test_batches_bring_along_what_an_mtsae_reads(options: dict[str, Any]) -> None:
    sae, stream = make_sae(**options), make_stream()
    gather = partial(gather_reads, offsets=sae.read_offsets, padding=sae.cfg.padding)
    for found, expected in zip(islice(batches_for(sae, stream)(3), 4), stream.mixed(3, gather=gather), strict=False):
        assert torch.equal(found, expected)
        assert found.shape[1] == len(sae.read_offsets) * D_IN


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [("mtsae", {}), ("mtsae", {"padding": "circular"}), ("mtsae", {"memory": "predictive", "dilations": (0,)}), ("topk", {})],
    ids=str,
)
def test_what_masked_positions_hold_changes_no_weight(architecture: str, settings: dict[str, Any]) -> None:
    h, trained = make_stream().h, []
    masked = position_0(h)
    masked[3:9, 5] = True
    for value in (0.0, 1e4, float("nan")):
        h[masked] = value
        sae = make_sae(architecture, normalize_activations="expected_average_only_in", **settings)
        stream = StoredBlocks(h, batch_size_sequences=2, block_size_batches=4, masked=masked)
        trained.append(fit(sae, stream, n_steps=STEPS, batch_size_tokens=2 * POS, lr=1e-2))
    assert same(trained[0], trained[1])
    assert same(trained[0], trained[2])


def test_a_row_of_zeros_is_a_wall_in_training_because_it_is_one_in_use() -> None:
    sae, stream = make_sae(), make_stream()
    stream.h[:, 7] = 0
    rows = torch.cat(list(islice(batches_for(sae, stream)(0), 4)))
    assert len(rows) == 8 * (POS - 1)
    gather = partial(gather_reads, walls=find_walls(next(stream.blocks(0)).h), offsets=sae.read_offsets, padding="causal")
    expected = gather(next(stream.blocks(0)).h)(torch.arange(8 * POS))
    kept = torch.arange(8 * POS) % POS != 0
    assert sorted(rows.tolist()) == sorted(expected[kept].tolist())


def test_a_pointwise_sae_is_trained_on_a_row_of_zeros_as_in_saelens() -> None:
    sae, stream = make_sae("topk"), make_stream()
    stream.h[:, 7] = 0
    seen: list[torch.Tensor] = []
    original = sae.training_forward_pass
    sae.training_forward_pass = lambda step_input: seen.append(step_input.sae_in) or original(step_input)
    fit(sae, stream, n_steps=4, batch_size_tokens=2 * POS, lr=1e-3)
    assert (torch.cat(seen) == 0).all(dim=-1).sum() == 8


def test_other_architectures_get_the_same_rows_alone() -> None:
    stream = make_stream()
    temporal, pointwise = (next(batches_for(make_sae(kind), stream)(2)) for kind in CONFIGS)
    assert pointwise.shape[1] == D_IN
    assert torch.equal(temporal[:, :D_IN], pointwise)


@pytest.mark.parametrize(("settings", "given"), [({"context_size": POS // 2}, POS), ({"context_size": 2 * POS}, POS)])
def test_contexts_of_another_length_are_refused(settings: dict[str, int], given: int) -> None:
    with pytest.raises(DataError, match=rf"= \({settings['context_size']}, {D_IN}\), got \({given}, {D_IN}\)"):
        fit(make_sae(**settings), make_stream(), n_steps=4, batch_size_tokens=2 * POS, lr=1e-3)


def test_activations_that_are_no_numbers_are_named() -> None:
    stream = make_stream()
    stream.h[3, 2] = torch.nan
    with pytest.raises(DataError, match="got NaN or infinity"):
        fit(make_sae(), stream, n_steps=20, batch_size_tokens=2 * POS, lr=1e-3)


@pytest.mark.wrong_shapes
def test_single_positions_are_no_contexts() -> None:
    with pytest.raises(DataError, match=r"contexts are \(n, pos, d_in\); got shape \(6, 4\)"):
        StoredBlocks(torch.randn(6, 4), batch_size_sequences=2, masked=torch.zeros(6, dtype=torch.bool))


@pytest.mark.parametrize("width", [1, D_IN - 1, D_IN + 1])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_activations_of_another_width_are_refused(architecture: str, width: int) -> None:
    stream = stored(torch.randn(4, POS, width), batch_size_sequences=2)
    with pytest.raises(DataError, match="make them equal"):
        fit(make_sae(architecture), stream, n_steps=2, batch_size_tokens=2 * POS, lr=1e-3)


@pytest.mark.parametrize("shape", [(0, POS, D_IN), (4, 0, D_IN), (4, POS, 0)])
def test_a_stream_without_activations_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="at least one context"):
        StoredBlocks(torch.zeros(shape), batch_size_sequences=2, masked=torch.zeros(shape[:2], dtype=torch.bool))


def test_a_number_is_no_context() -> None:
    with pytest.raises(DataError, match="expected activations of width"):
        make_sae().encode(torch.tensor(1.0))


def test_activations_that_come_with_their_gradients_are_trained_on() -> None:
    stream = make_stream()
    with_gradients = stored((2 * stream.h.requires_grad_()) / 2, batch_size_sequences=2, block_size_batches=4)
    plain, other = (
        fit(make_sae(), blocks, n_steps=STEPS, batch_size_tokens=2 * POS, lr=1e-3) for blocks in (make_stream(), with_gradients)
    )
    assert same(plain, other)


def test_saelens_topk_is_trained_by_the_sparse_step(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def recorded(*args: Any) -> Any:
        taken.append(take_sparse_step(*args))
        return taken[-1]

    monkeypatch.setattr(trainer, "take_sparse_step", recorded)
    sae = TrainingSAE.from_dict(TopKTrainingSAEConfig(d_in=4, d_sae=64, k=3).to_dict())
    h = torch.randn(8, 6, 4, generator=torch.Generator().manual_seed(0))
    fit(sae, StoredBlocks(h, 2, masked=torch.zeros(8, 6, dtype=torch.bool)), n_steps=3, batch_size_tokens=12, lr=1e-3)
    assert len(taken) == 3
    assert all(output.feature_acts.is_sparse for output in taken)


def test_the_prediction_of_a_memory_learns_at_its_share_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also at the floor of the schedule, which would otherwise be one learning rate for all weights."""
    rates, make_optimizer = [], trainer.make_optimizer

    def watched(*args: Any) -> torch.optim.Optimizer:
        optimizer = make_optimizer(*args)
        optimizer.register_step_pre_hook(lambda *_: rates.append([group["lr"] for group in optimizer.param_groups]))
        return optimizer

    monkeypatch.setattr(trainer, "make_optimizer", watched)
    sae = make_sae(memory="predictive", dilations=(0,), memory_lags=(1, 2))
    fit(sae, make_stream(), n_steps=STEPS, batch_size_tokens=2 * POS, lr=1e-2, lr_warm_up_steps=2, lr_end=5e-3)
    assert len(rates) == STEPS
    for of_weights, of_prediction in rates:
        assert of_prediction == pytest.approx(sae.cfg.memory_lr_ratio * of_weights)
