"""Test every command on a language model in half precision, from training to export, and SAEs that SAELens itself trained on one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from sae_lens import SAE, LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, LoggingConfig
from sae_lens.saes.topk_sae import TopKTrainingSAEConfig
from transformer_lens import HookedTransformer
from transformer_lens.HookedTransformer import DTYPE_FROM_STRING

from mtsae_lens.commands.evaluate import EvaluateSettings, run_evaluate
from mtsae_lens.commands.explore import ExploreSettings, run_explore
from mtsae_lens.commands.export import ExportSettings, run_export
from mtsae_lens.commands.generate import GenerateSettings, run_generate
from mtsae_lens.commands.train import run_train
from mtsae_lens.commands.unlearn import UnlearnSettings, run_unlearn
from mtsae_lens.errors import ConfigError
from mtsae_lens.opening import open_sae
from mtsae_lens.training.recipe import TrainSettings


def numbers(content: Any) -> Iterator[float]:
    if isinstance(content, dict | list):
        for part in content.values() if isinstance(content, dict) else content:
            yield from numbers(part)
    elif isinstance(content, float):
        yield content


@pytest.mark.parametrize(
    ("family", "dtype", "prefix"),
    [("tiny_model_dir", "bfloat16", ""), ("tiny_llama_dir", "bfloat16", ""), ("tiny_llama_dir", "float16", "bridge:")],
    ids=["neox-bfloat16", "llama-bfloat16", "llama-float16-bridge"],
)
def test_from_training_to_export(
    family: str,
    dtype: Any,
    prefix: str,
    request: pytest.FixtureRequest,
    tiny_settings: Callable[..., TrainSettings],
    text_file: Path,
    sea_file: Path,
    tmp_path: Path,
) -> None:
    model, sae, land, sea = f"{prefix}{request.getfixturevalue(family)}", tmp_path / "sae", str(text_file), str(sea_file)
    run_train(tiny_settings(sae, model=model, dtype=dtype))
    metadata = json.loads((sae / "cfg.json").read_text())["metadata"]
    assert metadata["model_from_pretrained_kwargs"] == {"dtype": dtype}
    assert DTYPE_FROM_STRING[dtype] == getattr(torch, dtype)  # what HookedTransformer makes of it
    lm, opened = open_sae(sae)
    assert opened.cfg.dtype == getattr(torch, dtype)
    assert {parameter.dtype for parameter in lm.sae.parameters()} == {torch.float32}

    measured = run_evaluate(
        EvaluateSettings(sae=sae, out=tmp_path / "evaluate", n_contexts=4, n_scale_contexts=4, batch_size=4)
    )
    assert 0 < measured.metrics["ce_loss_without_sae"] < 2 * math.log(4096)

    measured = run_unlearn(
        UnlearnSettings(
            sae=sae,
            out=tmp_path / "unlearn",
            forget=sea,
            retain=(land,),
            reference=model,
            n_features=(2,),
            multipliers=(1.0,),
            false_positive_rates=(None, 0.2),
            far_budget=9,
            min_ratio=1.0,
            n_random_draws=1,
            contexts_per_split=4,
            batch_size=4,
        )
    )
    assert measured.identity_error == 0
    assert measured.corpora[sea].nll_reference == pytest.approx(measured.corpora[sea].nll_clean, abs=1e-6)
    edit = tmp_path / "unlearn" / "edit.json"
    assert all(run_generate(GenerateSettings(sae=sae, edit=edit, prompt="the ship", max_new_tokens=4)))
    if prefix:
        return  # what follows reruns a bridge from the start for every edit

    options: dict[str, Any] = {"n_tokens": 300, "n_examples": 1, "n_ablated": 1, "n_attributed": 1, "batch_size": 4}
    options |= {"n_attribution_contexts": 2, "n_text_contexts": 2}
    facts, _ = run_explore(ExploreSettings(sae=sae, out=tmp_path / "explore", dataset=(land, sea), **options))
    assert facts["n_tokens"] > 0
    table = pq.read_table(tmp_path / "explore" / "features.parquet").to_pydict()
    assert any(value is not None and value != 0 for value in table["attribution"])
    with pytest.raises(ConfigError, match="other settings"):  # facts depend on the dtype
        run_explore(ExploreSettings(sae=sae, out=tmp_path / "explore", dataset=(land, sea), dtype="float32", **options))

    for form in ("hooked", "low-rank"):
        settings = {"form": form, "forget": sea, "retain": (land,), "n_steps": 2, "n_contexts": 3, "train_contexts": 4}
        exported = run_export(ExportSettings(sae=sae, edit=edit, out=tmp_path / form, **settings))
        assert all(math.isfinite(value) for value in numbers(exported.to_json()["comparison"]))


def test_a_run_is_not_resumed_in_another_dtype(tiny_settings: Callable[..., TrainSettings], tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path / "run", dtype="bfloat16")
    run_train(settings)
    with pytest.raises(ConfigError, match="model_dtype: 'bfloat16' then, None now"):
        run_train(settings.model_copy(update={"dtype": "float32"}), resume=True)


def test_the_command_line(mtsae: Callable[..., Any], tiny_model_dir: Path, text_file: Path, tmp_path: Path) -> None:
    options = [
        "--hook-name",
        "blocks.0.hook_resid_post",
        "--dataset",
        text_file,
        "--context-size",
        32,
        "--batch-size-tokens",
        64,
    ]
    options += ["--training-tokens", 128, "--d-sae", 16, "--set", "k=4", "--out", tmp_path / "sae"]
    outcome = mtsae("train", "--model", tiny_model_dir, "--dtype", "int8", *options)
    assert outcome.code == 2
    assert "--dtype: expected 'float32', 'bfloat16' or 'float16', got 'int8'" in outcome.error
    assert mtsae("train", "--model", tiny_model_dir, "--dtype", "bfloat16", *options).code == 0
    outcome = mtsae("evaluate", tmp_path / "sae", "--n-contexts", 2, "--out", tmp_path / "evaluate")
    assert outcome.code == 0
    assert "model_from_pretrained_kwargs" not in outcome.err
    config = tmp_path / "settings.yaml"
    config.write_text(f"sae: {tmp_path / 'sae'}\nout: {tmp_path / 'other'}\nn_contexts: 2\ndtype: float16\n")
    assert mtsae("evaluate", tmp_path / "sae", "--config", config).code == 0


def test_an_sae_that_stock_saelens_trained(half_lm: Any, tiny_model_dir: Path, tmp_path: Path) -> None:
    cfg = LanguageModelSAERunnerConfig(
        sae=TopKTrainingSAEConfig(d_in=32, d_sae=32, k=4),
        model_name=str(tiny_model_dir),
        model_from_pretrained_kwargs={"dtype": "bfloat16"},
        hook_name="blocks.0.hook_resid_post",
        dataset_path="unused",
        context_size=16,
        training_tokens=256,
        train_batch_size_tokens=64,
        store_batch_size_prompts=4,
        n_batches_in_buffer=8,
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        n_eval_batches=0,
        output_path=str(tmp_path / "sae"),
        device="cpu",
        verbose=False,
    )
    texts = Dataset.from_dict({"text": [f"w{i} and the sea and the land " * 40 for i in range(40)]})
    LanguageModelSAETrainingRunner(cfg, override_model=half_lm.model, override_dataset=texts).run()
    lm, model = open_sae(tmp_path / "sae")
    assert isinstance(model, HookedTransformer)
    assert model.cfg.dtype == torch.bfloat16
    assert SAE.load_from_disk(tmp_path / "sae").cfg.metadata.model_from_pretrained_kwargs == {"dtype": "bfloat16"}
    assert lm.feature_acts(model.to_tokens("the sea and the land")).dtype == torch.float32
