"""Test the runner with rows or a model given as objects."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens import SAE, LanguageModelSAERunnerConfig, LoggingConfig

from mtsae_lens import MTTrainingSAEConfig
from mtsae_lens.errors import ConfigError, DataError, ModelError
from mtsae_lens.training import runner_checks
from mtsae_lens.training.runner import SequenceSAETrainingRunner
from mtsae_lens.training.runner_checks import check_config


def config(model: Any, **changes: Any) -> LanguageModelSAERunnerConfig[Any]:
    values: dict[str, Any] = {
        "sae": MTTrainingSAEConfig(d_in=model.cfg.d_model, d_sae=32, k=4, dilations=(0, 1), context_size=16),
        "model_name": "tiny",
        "hook_name": "blocks.1.hook_resid_pre",
        "context_size": 16,
        "training_tokens": 256,
        "train_batch_size_tokens": 64,
        "logger": LoggingConfig(log_to_wandb=False),
        "checkpoint_path": None,
        "output_path": None,
    }
    return LanguageModelSAERunnerConfig(**(values | changes))


def test_rows_without_text_are_refused(tiny_model: Any) -> None:
    for rows in ({"content": ["the sea"]}, {"text": [3]}):
        runner = SequenceSAETrainingRunner(
            config(tiny_model), override_model=tiny_model, override_dataset=Dataset.from_dict(rows)
        )
        with pytest.raises(DataError, match="override_dataset, row 0: expected an object with a string under 'text', got"):
            runner.run()


@pytest.mark.parametrize("device", ["", "inf", "meta", "gpu"])
def test_a_device_that_is_not_there_is_refused(tiny_model: Any, device: str) -> None:
    for changes in ({"device": device}, {"sae": MTTrainingSAEConfig(d_in=32, d_sae=32, k=4, context_size=16, device=device)}):
        with pytest.raises(ModelError, match="expected a usable device"):
            SequenceSAETrainingRunner(config(tiny_model, **changes), override_model=tiny_model, override_dataset=TEXTS)


TEXTS = Dataset.from_dict({"text": ["the sea and the land " * 40] * 8})


def test_the_dtype_is_that_of_saelens_configuration(tiny_model_dir: Path) -> None:
    cfg = config(SimpleNamespace(cfg=SimpleNamespace(d_model=32)), model_name=str(tiny_model_dir))
    assert cfg.model_from_pretrained_kwargs == {"center_writing_weights": False}  # SAELens's own default
    assert SequenceSAETrainingRunner(cfg, override_dataset=TEXTS).model.cfg.dtype == torch.float32
    cfg.model_from_pretrained_kwargs = {"dtype": "bfloat16"}
    runner = SequenceSAETrainingRunner(cfg, override_dataset=TEXTS)
    assert runner.model.cfg.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in runner.sae.parameters()} == {torch.float32}


def test_the_dtype_of_a_given_model_is_recorded(tiny_model: Any, half_lm: Any) -> None:
    for model, expected in ((tiny_model, {}), (half_lm.model, {"dtype": "bfloat16"})):
        sae = SequenceSAETrainingRunner(config(model), override_model=model, override_dataset=TEXTS).run()
        assert (sae.cfg.metadata.model_from_pretrained_kwargs or {}) == expected


def test_dtypes_that_contradict_each_other_are_refused(tiny_model: Any, half_lm: Any) -> None:
    for model, kwargs in ((tiny_model, {"dtype": "bfloat16"}), (half_lm.model, {"dtype": "float32"})):
        cfg = config(model, model_from_pretrained_kwargs=kwargs)
        with pytest.raises(ConfigError, match=f"expected a model in '{kwargs['dtype']}', .* got override_model in"):
            SequenceSAETrainingRunner(cfg, override_model=model, override_dataset=TEXTS)
    cfg = config(half_lm.model, model_from_pretrained_kwargs={"dtype": torch.bfloat16})
    with pytest.raises(ConfigError, match=r"expected the name of a dtype .*, got torch\.bfloat16; give dtype='bfloat16'"):
        SequenceSAETrainingRunner(cfg, override_model=half_lm.model, override_dataset=TEXTS)


@pytest.mark.parametrize(
    "kwargs", [{"center_writing_weights": True}, {"revision": "step1000"}, {"dtype": "float32", "n_ctx": 16}], ids=str
)
def test_ways_to_load_a_model_that_are_not_carried_out_are_refused(kwargs: dict[str, Any], tiny_model: Any) -> None:
    name, value = list(kwargs.items())[-1]
    with pytest.raises(ConfigError, match=f"with dtype only, got {name}={value!r}, which this runner does not follow"):
        check_config(config(tiny_model, model_from_pretrained_kwargs=kwargs))
    check_config(config(tiny_model, model_from_pretrained_kwargs={"fold_ln": False, "torch_dtype": "bfloat16"}))


@pytest.mark.parametrize(
    ("name", "value", "default"),
    [
        ("seqpos_slice", (1, None), r"\(None,\)"),
        ("sequence_separator_token", None, "'bos'"),
        ("exclude_special_tokens", [3, 4], "False"),
        ("model_kwargs", {"x": 1}, "{}"),
        ("activations_mixing_fraction", 0.0, "0.5"),
        ("dead_feature_threshold", 1e-4, "1e-08"),
        ("dtype", "bfloat16", "'float32'"),
        ("model_class_name", "HookedMamba", "'HookedTransformer'"),
    ],
)
def test_a_setting_that_is_not_carried_out_is_refused(name: str, value: Any, default: str, tiny_model: Any) -> None:
    cfg = config(tiny_model)
    setattr(cfg, name, value)
    with pytest.raises(
        ConfigError, match=f"^expected {name}={default}, got .*, which this runner does not follow; leave it out$"
    ):
        SequenceSAETrainingRunner(cfg, override_model=tiny_model, override_dataset=TEXTS)


def test_a_cache_is_needed_where_one_is_asked_for(tiny_model: Any, tmp_path: Path) -> None:
    cfg = config(tiny_model)
    cfg.use_cached_activations = True
    with pytest.raises(
        ConfigError,
        match="expected the folder of a cache with use_cached_activations=True, got None; give cached_activations_path=",
    ):
        SequenceSAETrainingRunner(cfg)
    cfg.cached_activations_path = str(tmp_path)
    with pytest.raises(
        ConfigError, match=r"expected a cache of activations, got no cache\.json in it; make one with mtsae cache"
    ):
        SequenceSAETrainingRunner(cfg)
    with pytest.raises(ConfigError, match="expected no override_dataset, hook_head_index or autocast_lm beside a cache"):
        SequenceSAETrainingRunner(cfg, override_dataset=TEXTS)


def test_position_0_is_masked_in_training_and_in_use(tiny_model: Any) -> None:
    sizes = {"d_in": tiny_model.cfg.d_model, "d_sae": 32, "context_size": 16}
    reads_it = config(tiny_model, sae=MTTrainingSAEConfig.paper(**sizes, skip_first_position=False))
    with pytest.raises(
        ConfigError, match=r"expected skip_first_position=True, got False: this runner masks position 0 .*; leave it out"
    ):
        SequenceSAETrainingRunner(reads_it, override_model=tiny_model, override_dataset=TEXTS)
    runner = SequenceSAETrainingRunner(
        config(tiny_model, sae=MTTrainingSAEConfig.paper(**sizes)), override_model=tiny_model, override_dataset=TEXTS
    )
    assert next(runner.stream.blocks(0)).masked[:, 0].all()
    sae = runner.run()
    h = torch.randn(2, 16, tiny_model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    changed = torch.cat([2 * h[:, :1] + 1, h[:, 1:]], dim=1)
    assert torch.equal(sae.encode(h), sae.encode(changed))


def test_a_checkpoint_does_not_depend_on_the_settings_of_other_activations(tiny_model: Any) -> None:
    """So a checkpoint made before such a setting existed can be resumed."""
    found = {}
    for activation in ("topk", "jumprelu"):
        sae = MTTrainingSAEConfig(d_in=tiny_model.cfg.d_model, d_sae=32, k=4, context_size=16, activation=activation)
        runner = SequenceSAETrainingRunner(config(tiny_model, sae=sae), override_model=tiny_model, override_dataset=TEXTS)
        trainer, _ = runner.prepare(resume=False)
        found[activation] = set(trainer.fingerprint)
    assert {"sae.k", "sae.aux_loss_coefficient"} == found["topk"] - found["jumprelu"]
    assert {"sae.l0_coefficient", "sae.jumprelu_bandwidth"} < found["jumprelu"] - found["topk"]


def test_a_checkpoint_from_before_matryoshka_widths_can_be_resumed(tiny_model: Any) -> None:
    for widths, expected in ([], None), ([8], [8]):
        sae = MTTrainingSAEConfig(d_in=tiny_model.cfg.d_model, d_sae=32, k=4, context_size=16, matryoshka_widths=widths)
        runner = SequenceSAETrainingRunner(config(tiny_model, sae=sae), override_model=tiny_model, override_dataset=TEXTS)
        trainer, _ = runner.prepare(resume=False)
        assert trainer.fingerprint["sae.matryoshka_widths"] == expected


@pytest.mark.parametrize("activation", ["jumprelu", "batchtopk"])
def test_an_activation_with_thresholds_resumes_to_the_same_weights(activation: str, tiny_model: Any, tmp_path: Path) -> None:
    def run(out: Path, *, resume: bool = False) -> dict[str, torch.Tensor]:
        sae = MTTrainingSAEConfig(d_in=tiny_model.cfg.d_model, d_sae=32, k=4, context_size=16, activation=activation)
        cfg = config(tiny_model, sae=sae, output_path=str(out), n_checkpoints=1)
        return SequenceSAETrainingRunner(cfg, override_model=tiny_model, override_dataset=TEXTS).run(resume=resume).state_dict()

    whole = run(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_000000004")
    resumed = run(tmp_path / "run", resume=True)
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    loaded = SAE.load_from_disk(tmp_path / "run")
    assert loaded.cfg.activation == "jumprelu"
    assert loaded.threshold.any()


@pytest.mark.parametrize(
    ("name", "value"), [("exclude_special_tokens", True), ("is_dataset_tokenized", False), ("verbose", False)]
)
def test_a_setting_that_says_what_is_done_anyway_is_taken(name: str, value: Any, tiny_model: Any) -> None:
    cfg = config(tiny_model)
    setattr(cfg, name, value)
    runner = SequenceSAETrainingRunner(cfg, override_model=tiny_model, override_dataset=TEXTS)
    assert getattr(runner.cfg, name) == value


def test_every_setting_is_followed_without_effect_or_refused() -> None:
    names = {field.name for field in dataclasses.fields(LanguageModelSAERunnerConfig)}
    assert names >= runner_checks._FOLLOWED | runner_checks._NO_EFFECT
    assert not runner_checks._FOLLOWED & runner_checks._NO_EFFECT
