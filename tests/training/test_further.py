"""Test that an SAE that was trained can be trained further, from its folder or as it is in memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import HOOK
from sae_lens import SAE, TrainingSAE
from safetensors.torch import load_file
from stored import stored
from torch import Tensor, testing

from mtsae_lens import MTTrainingSAE, MTTrainingSAEConfig, MTTrainingTranscoder, MTTrainingTranscoderConfig, TrainSettings
from mtsae_lens.data.blocks import StoredBlocks
from mtsae_lens.errors import ConfigError
from mtsae_lens.training.fit import fit
from mtsae_lens.training.recipe import runner_config, train_sae, trainer_options
from mtsae_lens.training.runner import SequenceSAETrainingRunner
from mtsae_lens.training.start import restore_scale_

POS, D_IN, D_OUT = 8, 6, 5
SCHEDULE: dict[str, Any] = {"batch_size_tokens": 2 * POS, "lr": 1e-2, "n_steps": 12}
NOTHING = SCHEDULE | {"lr": 0.0, "n_steps": 3}
MEMORY = {"memory": "predictive", "memory_lags": (1, 2), "memory_decays": (0.5,), "memory_rank": 3, "dilations": (0,)}
assert_close = partial(testing.assert_close, rtol=1e-4, atol=1e-3)  # of activations of about 50
SCALED = {"normalize_activations": "expected_average_only_in"}


def contexts(width: int = D_IN, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 20 * torch.randn(16, POS, 3, generator=generator) @ torch.randn(3, width, generator=generator) + 30


def stream(*widths: int) -> StoredBlocks:
    h = torch.cat([contexts(width) for width in widths or (D_IN,)], dim=-1)
    h[:, 0] = 0
    return stored(h, batch_size_sequences=2, block_size_batches=4)


def make_sae(**settings: Any) -> MTTrainingSAE:
    torch.manual_seed(0)
    values = {"d_in": D_IN, "d_sae": 12, "k": 3, "context_size": POS, "dilations": (0, 1, 2)} | SCALED | settings
    return MTTrainingSAE(MTTrainingSAEConfig(**values))


def saved(sae: TrainingSAE[Any], folder: Path) -> SAE[Any]:
    sae.save_inference_model(folder)
    return SAE.load_from_disk(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"activation": "topk"},
        {"activation": "batchtopk", "topk_threshold_lr": 0.2},
        {"activation": "jumprelu", "jumprelu_init_threshold": 0.3},
        {"activation": "relu", "scale_norm": "rescaled_layer_norm"},
        {"activation": "topk", "hierarchy": "nested", "apply_b_dec_to_input": False},
        {"activation": "topk", **MEMORY},
        {"activation": "batchtopk", **MEMORY},
        {"activation": "jumprelu", "normalize_decoder": False},  # rows of different norms
    ],
    ids=lambda settings: "-".join(str(value) for value in settings.values() if isinstance(value, str)),
)
def test_steps_at_a_learning_rate_of_zero_change_nothing(settings: dict[str, Any], tmp_path: Path) -> None:
    first = saved(fit(make_sae(**settings), stream(), **SCHEDULE), tmp_path / "first")
    sae: Any = TrainingSAE.load_from_disk(tmp_path / "first")
    norms = sae.W_dec.norm(dim=-1)
    assert (norms - 1).abs().min() > 0.1
    second = saved(fit(sae, stream(), **NOTHING), tmp_path / "second")
    h = contexts(seed=2)
    assert first.encode(h).any()
    assert_close(second.encode(h).detach(), (first.encode(h) * (norms if "normalize_decoder" in settings else 1)).detach())
    assert_close(second(h), first(h))


def test_an_sae_in_memory_is_trained_further_in_the_units_it_was_trained_in() -> None:
    sae = fit(make_sae(**MEMORY), stream(), **SCHEDULE)
    expected, errors = sae(contexts()), sae.recent_errors.clone()
    scale = restore_scale_(sae)
    assert scale == pytest.approx(D_IN**0.5 / stream().h[:, 1:].norm(dim=-1).mean().item(), rel=0.1)
    assert_close(sae.W_dec.norm(dim=-1), torch.ones(12))
    assert_close(sae(contexts() * scale), expected * scale)
    assert_close(sae.recent_errors, errors * scale)
    assert restore_scale_(sae) is None
    sae.fold_activation_norm_scaling_factor(scale)
    assert_close(fit(sae, stream(), **NOTHING)(contexts()), expected)


def test_a_transcoder_is_trained_further(tmp_path: Path) -> None:
    torch.manual_seed(0)
    cfg = MTTrainingTranscoderConfig(d_in=D_IN, d_out=D_OUT, d_sae=12, k=3, context_size=POS, dilations=(0, 1), **SCALED)
    first = saved(fit(MTTrainingTranscoder(cfg), stream(D_IN, D_OUT), **SCHEDULE), tmp_path / "first")
    second = fit(TrainingSAE.load_from_disk(tmp_path / "first"), stream(D_IN, D_OUT), **NOTHING)
    assert_close(saved(second, tmp_path / "second")(contexts()), first(contexts()))


def test_a_new_sae_keeps_its_scale() -> None:
    """Its `decoder_init_norm` is no scale of activations."""
    sae = make_sae(decoder_init_norm=0.5, normalize_activations="none")
    assert restore_scale_(sae) is None
    assert_close(sae.W_dec.norm(dim=-1), torch.full((12,), 0.5))


def test_rows_of_different_norms_cannot_be_folded_below_a_top_k() -> None:
    sae = fit(make_sae(normalize_decoder=False), stream(), **SCHEDULE)
    fit(sae, stream(), **NOTHING)
    sae.cfg.normalize_decoder = True
    with pytest.raises(
        ConfigError,
        match=r"expected decoder rows of the same norm .*activation='topk'.*; set sae\.cfg\.normalize_decoder = False$",
    ):
        fit(sae, stream(), **NOTHING)


def test_a_run_from_a_saved_sae_resumes_to_the_same_weights(
    tiny_settings: Callable[..., TrainSettings], tiny_model: Any, tmp_path: Path
) -> None:
    settings = tiny_settings(tmp_path / "first", sae={"k": 4, **MEMORY})
    train_sae(settings, tiny_model)

    def further(*, resume: bool = False) -> dict[str, Tensor]:
        changed = settings.model_copy(update={"out": tmp_path / "further"})
        cfg = runner_config(changed, tiny_model.cfg.d_model)
        cfg.from_pretrained_path = str(tmp_path / "first")
        SequenceSAETrainingRunner(cfg, override_model=tiny_model, options=trainer_options(changed)).run(resume=resume)
        return load_file(tmp_path / "further" / "sae_weights.safetensors")

    whole = further()
    checkpoints = sorted((tmp_path / "further" / "checkpoints").iterdir())
    shutil.rmtree(checkpoints[-1])
    resumed = further(resume=True)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert (
        TrainingSAE.load_from_disk(sorted((tmp_path / "further" / "checkpoints").iterdir())[-1]).cfg.normalize_activations
        != "none"
    )


@pytest.mark.parametrize("hook_name", [HOOK, "blocks.0.attn.hook_z"])
@pytest.mark.parametrize("memory", ["none", "predictive"])
@pytest.mark.parametrize("activation", ["topk", "batchtopk", "jumprelu", "relu"])
def test_every_sae_can_be_trained_saved_and_opened_for_training(
    activation: str,
    memory: str,
    hook_name: str,
    tiny_settings: Callable[..., TrainSettings],
    tiny_model: Any,
    tmp_path: Path,
) -> None:
    sae = {"activation": activation, "memory": memory} | ({"k": 4} if "topk" in activation else {})
    settings = tiny_settings(tmp_path, hook_name=hook_name, sae=sae, training_tokens=256, checkpoint_every_n_steps=100)
    trained: Any = train_sae(settings, tiny_model)
    loaded: Any = TrainingSAE.load_from_disk(tmp_path)
    assert loaded.cfg.reshape_activations == ("hook_z" if hook_name.endswith("hook_z") else "none")
    h = torch.randn(2, settings.context_size, 32, generator=torch.Generator().manual_seed(0))
    if activation != "batchtopk":  # which has a threshold once it is saved
        testing.assert_close(loaded.encode(h), trained.encode(h))
    flat: Any = SAE.load_from_disk(tmp_path)
    flat.turn_off_forward_pass_hook_z_reshaping()
    testing.assert_close(flat.encode(h), loaded.encode(h))
