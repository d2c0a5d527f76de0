"""Test what the trainer optimizes, counts and logs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import LoggingConfig
from sae_lens.config import SAETrainerConfig
from safetensors.torch import load_file
from stored import stored

from mtsae_lens import MTTrainingSAE, MTTrainingSAEConfig
from mtsae_lens.commands.train import TrainResult, run_train
from mtsae_lens.errors import ConfigError, DivergedError, ModelError
from mtsae_lens.training.fit import batches_for
from mtsae_lens.training.log import TrainingLog, read_log
from mtsae_lens.training.options import TrainerOptions
from mtsae_lens.training.recipe import train_sae
from mtsae_lens.training.trainer import SequenceSAETrainer

POS, D_IN, D_SAE, STEPS = 8, 6, 12, 20


def batches(first_step: int = 0) -> Iterator[torch.Tensor]:
    """Two whole contexts a batch, no position masked; a batch depends on its step alone."""
    basis = torch.randn(3, D_IN, generator=torch.Generator().manual_seed(99))
    step = first_step
    while True:
        generator = torch.Generator().manual_seed(step)
        h = torch.randn(2, POS, 3, generator=generator) @ basis * 5 + 1
        yield h.flatten(0, 1)
        step += 1


def make_trainer(run_dir: Path | None = None, *, weight_decay: float = 0.0, lr: float = 1e-2, window: int = 5, **sae: Any):
    torch.manual_seed(0)
    made = MTTrainingSAE(MTTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=3, context_size=POS, skip_first_position=False, **sae))
    cfg = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=STEPS * 2 * POS,
        device="cpu",
        autocast=False,
        lr=lr,
        lr_end=lr,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=0,
        n_restart_cycles=1,
        train_batch_size_samples=2 * POS,
        dead_feature_window=window,
        feature_sampling_window=7,
        logger=LoggingConfig(log_to_wandb=False),
    )
    options = TrainerOptions(weight_decay=weight_decay, log_every_n_steps=5, checkpoint_every_n_steps=1000, run_dir=run_dir)
    return SequenceSAETrainer(cfg, made, batches, options)


def test_the_log_has_a_row_every_n_steps_with_finite_numbers(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.fit()
    rows = read_log(tmp_path / "training_log.jsonl")
    assert [row["step"] for row in rows] == [5, 10, 15, 20]
    expected = {
        "losses/overall_loss",
        "losses/mse_loss",
        "metrics/explained_variance",
        "metrics/l0",
        "metrics/separation",
        "sparsity/dead_features",
        "details/grad_norm",
        "details/current_learning_rate",
        "details/n_training_samples",
    } | {f"metrics/scale_{d}_{what}" for d in (1, 2, 4, 8) for what in ("mean", "std", "encoder_norm")}
    for row in rows:
        assert expected <= set(row)
        assert all(row[key] is not None for key in expected)
        assert row["metrics/l0"] == pytest.approx(3)
        assert row["details/grad_norm"] > 0
        assert row["details/n_training_samples"] == row["step"] * 2 * POS
    assert rows[-1]["losses/overall_loss"] < rows[0]["losses/overall_loss"]


@pytest.mark.parametrize("activation", ["topk", "jumprelu"])
def test_a_sparse_run_logs_and_counts_what_a_dense_one_does(activation: str, tmp_path: Path) -> None:
    logs, counts = [], []
    for way in ("sparse", "dense"):
        trainer = make_trainer(tmp_path / way, training_step=way, activation=activation, dtype="float64", dilations=(0, 1, 2))
        trainer.cfg.feature_sampling_window = 1000
        trainer.fit()
        logs.append(read_log(tmp_path / way / "training_log.jsonl"))
        counts.append((trainer.act_freq_scores, trainer.n_forward_passes_since_fired))
    assert len(logs[0]) == len(logs[1]) == 4
    for sparse, dense in zip(*logs, strict=True):
        assert sparse == pytest.approx(dense, rel=1e-3, abs=1e-4)
    torch.testing.assert_close(*counts)
    assert counts[0][0].sum() > 0


def test_masked_rows_are_no_samples_whatever_they_hold() -> None:
    h = torch.cat(list(islice(batches(), STEPS))).view(-1, POS, D_IN)
    trained = []
    for value in (0.0, 1e4):
        h[:, 0] = value
        trainer = make_trainer(normalize_activations="expected_average_only_in")
        trainer.cfg.feature_sampling_window = 1000
        trainer.batches = batches_for(trainer.sae, stored(h, batch_size_sequences=2))
        trained.append(trainer.fit().state_dict())
        assert trainer.n_training_samples == STEPS * 2 * POS
        assert trainer.n_frac_active_samples == STEPS * 2 * (POS - 1)
        assert trainer.feature_sparsity.sum().item() == pytest.approx(3, abs=0.01)
    assert all(torch.equal(tensor, trained[1][name]) for name, tensor in trained[0].items())


def test_the_gradient_norm_is_the_one_before_clipping() -> None:
    trainer = make_trainer(normalize_activations="none")
    trainer.step(next(batches()))
    assert trainer.grad_norm > 1


def test_dead_features_are_those_that_did_not_fire_in_the_window() -> None:
    trainer = make_trainer()
    trainer.sae.b_enc.data[:4] = -1e6
    for step, batch in zip(range(7), batches(), strict=False):
        assert trainer.dead_neurons.sum() >= (4 if step > 5 else 0)
        trainer.step(batch)
    assert trainer.dead_neurons[:4].all()


def test_the_window_for_dead_features_is_at_most_a_third_of_the_run() -> None:
    trainer = make_trainer(window=300)
    assert trainer.dead_feature_window == STEPS // 3
    trainer.sae.b_enc.data[:4] = -1e6
    aux = [
        trainer.step(batch).losses.get("auxiliary_reconstruction_loss", 0)
        for _, batch in zip(range(STEPS), batches(), strict=False)
    ]
    assert trainer.dead_neurons[:4].all()
    assert not any(aux[: STEPS // 3])
    assert all(loss > 0 for loss in aux[STEPS // 3 + 1 :])


def test_the_log_counts_features_that_never_fired_and_that_always_fire(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.sae.b_enc.data[:4] = -1e6
    trainer.sae.b_enc.data[4:6] = 1e6
    seen, step = set(), trainer.step

    def recorded(batch: torch.Tensor) -> Any:
        output = step(batch)
        seen.update((output.feature_acts != 0).any(dim=0).nonzero().flatten().tolist())
        return output

    trainer.step = recorded  # type: ignore[method-assign]
    trainer.fit()
    last = read_log(tmp_path / "training_log.jsonl")[-1]
    assert last["sparsity/never_fired"] == D_SAE - len(seen) >= 4
    assert last["sparsity/always_on"] >= 2


@pytest.mark.parametrize("healthy", [True, False])
def test_a_collapse_is_told_once_and_says_what_to_do(healthy: bool, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer()
    if not healthy:
        trainer.sae.b_enc.data[:3] = 1e6  # three of three active places
    trainer.fit()
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning: step" in line]
    assert len(warnings) == (0 if healthy else 1)
    if not healthy:
        assert "3 features fire on over half of the tokens (L0 3.0) and 9 of 12 are silent; train it again with" in warnings[0]


def test_weight_decay_is_decoupled() -> None:
    """AdamW shrinks a parameter without gradient by lr * weight_decay; Adam would move it by lr."""
    trainer = make_trainer(weight_decay=0.5, normalize_decoder=False)
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    before = trainer.sae.W_enc.detach().clone()
    for parameter in trainer.sae.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trainer.optimizer.step()
    torch.testing.assert_close(trainer.sae.W_enc.detach(), before * (1 - 1e-2 * 0.5))


def test_decoder_rows_have_unit_norm() -> None:
    norms = make_trainer(normalize_activations="none").fit().W_dec.norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones(D_SAE))
    norms = make_trainer(normalize_activations="expected_average_only_in").fit().W_dec.norm(dim=-1)
    torch.testing.assert_close(norms, norms.mean().expand(D_SAE))  # all alike, times what was folded in
    free = make_trainer(normalize_activations="none", normalize_decoder=False).fit().W_dec.norm(dim=-1)
    assert not torch.allclose(free, torch.ones(D_SAE), rtol=1e-3)


def test_the_scale_comes_from_the_first_rows_and_uses_up_no_batch() -> None:
    trainer = make_trainer(normalize_activations="expected_average_only_in")
    data = trainer._start(batches())
    rows = torch.cat([batch for _, batch in zip(range(STEPS), batches(), strict=False)])
    assert torch.equal(torch.cat([batch for _, batch in zip(range(STEPS), data, strict=False)]), rows)
    assert trainer.activation_scaler.scaling_factor == pytest.approx(D_IN**0.5 / rows.norm(dim=-1).mean().item(), rel=1e-5)


def test_scaling_is_folded_into_the_weights() -> None:
    """Trained on h * s, used on h: the reconstruction error of what comes out is that of training, not larger."""
    trainer = make_trainer(normalize_activations="expected_average_only_in")
    sae = trainer.fit()
    h = next(batches(1000)).view(2, POS, D_IN)
    error = (sae(h) - h)[:, 1:].pow(2).sum(-1).mean()
    assert error < (h[:, 1:] - h[:, 1:].mean((0, 1))).pow(2).sum(-1).mean()
    assert sae.cfg.normalize_activations == "none"


def test_without_run_dir_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_trainer().fit()
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    with pytest.raises(DivergedError, match=r"expected a finite loss at step .*, got .*; lower the learning rate"):
        make_trainer(lr=1e30, normalize_decoder=False, scale_norm="none", activation="relu").fit()


def test_a_loss_that_is_not_finite_ends_the_run_between_two_rows_too() -> None:
    trainer = make_trainer(lr=1e30, normalize_decoder=False, scale_norm="none", activation="relu")
    trainer.options = TrainerOptions(log_every_n_steps=1000)
    with pytest.raises(DivergedError, match="expected a finite loss at step 20,"):  # the last one
        trainer.fit()


def test_weights_that_are_not_finite_are_not_saved() -> None:
    trainer = make_trainer()
    trainer.sae.b_dec.data[0] = float("nan")
    with pytest.raises(
        DivergedError, match="expected finite weights at step 0, got NaN or infinity in b_dec; lower the learning"
    ):
        trainer.finish()


def test_metrics_and_report_count_features(tmp_path: Path, tiny_settings: Callable[..., Any]) -> None:
    settings = tiny_settings(tmp_path / "run")
    result = run_train(settings)
    assert result is not None
    written = json.loads((settings.out / "metrics.json").read_text())
    assert TrainResult.from_json(written) == result
    assert set(written) - {"provenance"} == {field.name for field in dataclasses.fields(TrainResult)}
    assert (result.n_features, result.warning, result.dilations) == (32, None, (0, 1, 2, 4, 8))
    assert (result.never_fired, result.always_on) == (
        result.final["sparsity/never_fired"],
        result.final["sparsity/always_on"],
    )
    text = f"Of 32 features, {result.never_fired} never fired in the whole run"
    assert text in (settings.out / "report.html").read_text()


def test_a_finished_run_from_before_features_were_counted_is_reported(
    tmp_path: Path, tiny_settings: Callable[..., Any]
) -> None:
    settings = tiny_settings(tmp_path / "run")
    run_train(settings)
    log = settings.out / "training_log.jsonl"
    rows = [{k: v for k, v in row.items() if k not in ("sparsity/never_fired", "sparsity/always_on")} for row in read_log(log)]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for kept in settings.out.glob("checkpoints/*/training_log.jsonl"):
        kept.unlink()  # that version kept none
        (kept.parent / "SHA256SUMS").unlink()
    assert run_train(settings, resume=True).never_fired is None


def test_topk_trains_on_the_same_stream(tmp_path: Path, tiny_settings: Callable[..., Any]) -> None:
    """As many steps and positions as the MTSAE, and it learns."""
    settings = tiny_settings(tmp_path / "topk", architecture="topk", sae={"k": 4}, training_tokens=40 * 128, lr=5e-3)
    result = run_train(settings)
    rows = read_log(settings.out / "training_log.jsonl")
    assert result.n_training_steps == len(rows) == 40
    assert result.final["details/n_training_samples"] == 40 * 128
    assert "dilations" not in json.loads((settings.out / "metrics.json").read_text())
    assert rows[-1]["losses/overall_loss"] < 0.9 * rows[0]["losses/overall_loss"]
    assert rows[-1]["metrics/l0"] == pytest.approx(4)
    assert json.loads((settings.out / "cfg.json").read_text())["architecture"] == "topk"
    assert "<h2>Scales</h2>" not in (settings.out / "report.html").read_text()


def test_the_trained_mtsae_is_saved_with_all_that_its_use_needs(
    tiny_sae_dir: Path, tiny_model_dir: Path, text_file: Path
) -> None:
    cfg = json.loads((tiny_sae_dir / "cfg.json").read_text())
    assert (cfg["architecture"], cfg["k"], cfg["context_size"], cfg["d_sae"]) == ("mtsae", 4, 32, 32)
    metadata = cfg["metadata"]
    assert metadata["hook_name"] == "blocks.0.hook_resid_post"
    assert (metadata["model_name"], metadata["dataset_path"]) == (str(tiny_model_dir), str(text_file))
    assert metadata["prepend_bos"] is True
    assert load_file(tiny_sae_dir / "sparsity.safetensors")["sparsity"].shape == (32,)
    rows = read_log(tiny_sae_dir / "training_log.jsonl")
    assert rows[-1]["metrics/explained_variance"] > rows[0]["metrics/explained_variance"]


def test_settings_that_contradict_each_other_are_refused(
    tmp_path: Path, tiny_settings: Callable[..., Any], tiny_model: Any
) -> None:
    for changes, error, message in (
        ({"batch_size_tokens": 100}, ConfigError, "expected .* a multiple of context_size=32, got 100; give 96"),
        ({"training_tokens": 100}, ConfigError, "expected training_tokens of at least one batch .*, got 100"),
        ({"context_size": 128}, ConfigError, "expected context_size of at most 64, the context of the model, got 128"),
        ({"sae": {"d_in": 7}}, ModelError, "expected width d_in=7, that of the SAE, got 32"),
        ({"sae": {"context_size": 16}}, ConfigError, "context_size=16"),
    ):
        with pytest.raises(error, match=message):
            train_sae(tiny_settings(tmp_path / "run", **changes), tiny_model)
        assert not (tmp_path / "run").exists()


def test_whitening_is_carried_out_or_refused(tmp_path: Path, tiny_settings: Callable[..., Any], tiny_model: Any) -> None:
    settings = tiny_settings(tmp_path / "run", architecture="topk", normalize_activations="covariance_whitening")
    with pytest.raises(ConfigError):
        train_sae(settings, tiny_model)


@pytest.mark.parametrize("normalize_activations", ["layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "matching_pursuit"])
def test_other_architectures_train_on_normalized_activations(
    tmp_path: Path, tiny_settings: Callable[..., Any], tiny_model: Any, architecture: str, normalize_activations: str
) -> None:
    changes = {"architecture": architecture, "normalize_activations": normalize_activations, "sae": {}}
    settings = tiny_settings(tmp_path / "run", dead_feature_window=1, d_sae=128, **changes)  # so that features are dead
    train_sae(settings, tiny_model)
    assert read_log(tmp_path / "run" / "training_log.jsonl")


def test_log_drops_what_will_be_made_again_and_writes_no_nan(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with TrainingLog(path, 0) as log:
        for step in (1, 2, 3):
            log.write(step, {"x": float("nan") if step == 2 else step})
    with path.open("a") as file:
        file.write('{"step": 4, "x"')  # killed here
    assert json.loads(path.read_text().splitlines()[1]) == {"step": 2, "x": None}
    with TrainingLog(path, 2) as log:
        log.write(3, {"x": 30.0})
    assert read_log(path) == [{"step": 1, "x": 1}, {"step": 2, "x": None}, {"step": 3, "x": 30.0}]
    with TrainingLog(path, 0):
        pass
    assert read_log(path) == []
