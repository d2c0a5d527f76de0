"""Test SAEs on one attention head, in models with fewer key and value heads than query heads: trained, measured, unlearned, explored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sae_lens import SAE
from sae_lens.saes.sae import SAEMetadata

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.language_models import load_language_model, resolve_hook
from mtsae_lens.data.token_tables import read_tokens
from mtsae_lens.errors import ModelError
from mtsae_lens.evaluation.fidelity import check_fits, evaluate_fidelity
from mtsae_lens.opening import open_sae
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.splicing import Splice
from mtsae_lens.training.recipe import TrainSettings, runner_config
from mtsae_lens.training.runner import SequenceSAETrainingRunner

HEADS = {"hook_q": 4, "hook_k": 2, "hook_v": 2, "hook_z": 4}
D_HEAD = 8
PREFIXES = ("", "bridge:")


@pytest.fixture(scope="module")
def grouped_dir(save_llama: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "grouped"
    return save_llama(folder, num_attention_heads=4, num_key_value_heads=2)


@pytest.fixture(scope="module")
def models(grouped_dir: Path) -> dict[str, Any]:
    return {prefix: load_language_model(f"{prefix}{grouped_dir}") for prefix in PREFIXES}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", HEADS)
def test_width_at_a_head(models: dict[str, Any], prefix: str, name: str) -> None:
    hook_name, n_heads = f"blocks.1.attn.{name}", HEADS[name]
    assert resolve_hook(models[prefix], hook_name) == n_heads * D_HEAD
    for head in range(n_heads):
        assert resolve_hook(models[prefix], hook_name, head) == D_HEAD
    for wrong in (-1, n_heads, 99, True, 0.5, "0"):
        with pytest.raises(
            ModelError, match=rf"hook_head_index from 0 to {n_heads - 1} for .*{name} of grouped, got {wrong!r}"
        ):
            resolve_hook(models[prefix], hook_name, wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_hook_without_heads_has_no_head(models: dict[str, Any], prefix: str) -> None:
    with pytest.raises(ModelError, match=r"expected a hook with heads, got 'blocks\.1\.hook_resid_post'"):
        resolve_hook(models[prefix], "blocks.1.hook_resid_post", 0)


def test_what_heads_write_where_it_is_switched_on(grouped_dir: Path) -> None:
    model: Any = load_language_model(str(grouped_dir))
    with pytest.raises(ModelError, match="expected a hook that runs"):
        resolve_hook(model, "blocks.1.attn.hook_result", 3)
    model.set_use_attn_result(True)
    assert resolve_hook(model, "blocks.1.attn.hook_result", 3) == model.cfg.d_model


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", HEADS)
def test_measured_and_edited(models: dict[str, Any], prefix: str, name: str, text_file: Path) -> None:
    model = models[prefix]
    torch.manual_seed(0)
    metadata = SAEMetadata(hook_name=f"blocks.0.attn.{name}", hook_head_index=1)
    sae: Any = MTSAE(MTSAEConfig(d_in=D_HEAD, d_sae=32, k=4, context_size=32, metadata=metadata))
    for parameter in sae.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    check_fits(sae, model)
    cutter = ContextCutter(model.tokenizer, 32)
    table = read_tokens(str(text_file), "test", cutter, 4)
    metrics = evaluate_fidelity(sae, model, cutter, table, batch_size=4)
    assert metrics["n_features"] == 32
    assert metrics["future_leak"] == 0
    lm = HookedLM(model, Splice(sae), cutter, 4)
    h = lm.activations(table.tokens)
    edited = lm.splice.edited(h, FeatureEdit(tuple(range(32))))
    changed = [not torch.equal(edited[:, :, head], h[:, :, head]) for head in range(HEADS[name])]
    assert changed == [head == 1 for head in range(HEADS[name])]
    prompt = table.tokens[:2, :8]
    options = {"max_new_tokens": 6, "do_sample": False, "stop_at_eos": False}
    assert lm.generate(prompt, FeatureEdit(tuple(range(32)), 3.0), **options).shape == (2, 14)
    sae.cfg.metadata.hook_head_index = HEADS[name]
    with pytest.raises(ModelError, match=f"expected hook_head_index .*, got {HEADS[name]};"):
        check_fits(sae, model)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_by_the_command_line(
    prefix: str,
    grouped_dir: Path,
    tiny_settings: Callable[..., TrainSettings],
    tmp_path: Path,
    text_file: Path,
    sea_file: Path,
    mtsae: Callable[..., Any],
) -> None:
    out = tmp_path / "sae"
    settings = tiny_settings(out, model=f"{prefix}{grouped_dir}", hook_name="blocks.1.attn.hook_v")
    with pytest.raises(ModelError, match=r"hook_head_index from 0 to 1 .* got 2"):
        SequenceSAETrainingRunner(replace(runner_config(settings, D_HEAD), hook_head_index=2))
    SequenceSAETrainingRunner(replace(runner_config(settings, D_HEAD), hook_head_index=1)).run()
    assert SAE.load_from_disk(out).cfg.d_in == D_HEAD
    lm, _ = open_sae(out)
    assert lm.sae.cfg.metadata.hook_head_index == 1
    config = tmp_path / "unlearn.yaml"
    grid = {
        "n_features": [2],
        "multipliers": [1.0],
        "false_positive_rates": [None],
        "n_random_draws": 1,
        "contexts_per_split": 4,
    }
    grid |= {"scores": ["frequency_ratio"], "far_budget": 50.0, "min_ratio": 0.0}
    config.write_text(yaml.safe_dump(grid))
    unlearn = ("unlearn", out, "--forget", text_file, "--retain", sea_file, "--config", config, "--out", tmp_path / "unlearned")
    explore = ("explore", out, "--n-tokens", 300, "--n-ablated", 1, "--n-attributed", 1, "--out", tmp_path / "explored")
    for command in (("evaluate", out, "--n-contexts", 4, "--out", tmp_path / "evaluated"), unlearn, explore):
        outcome = mtsae(*command)
        assert outcome.code == 0, outcome.err
    edit = tmp_path / "unlearned" / "edit.json"
    outcome = mtsae("generate", out, "--edit", edit, "--prompt", "the cat", "--max-new-tokens", 4)
    assert outcome.code == 0, outcome.err
    assert "to export, got blocks.1.attn.hook_v" in mtsae("export", out, "--edit", edit, "--out", tmp_path / "e").error
