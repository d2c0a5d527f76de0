"""Test the example that teaches a language model the invented people."""

from __future__ import annotations

import runpy
import shutil
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.errors import ConfigError, ModelError


@pytest.fixture(scope="module")
def teacher() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[1] / "examples" / "teach_people.py"))


def teach(teacher: dict[str, Any], model: str | Path, out: Path, *more: str) -> dict[str, Any]:
    sizes = ["--people", "10", "--biographies", "1", "--questions", "1", "--texts", "4", "--context-size", "32"]
    return teacher["run"](teacher["parse"]([str(model), "--out", str(out), *sizes, *more]))


def test_both_taught_models_keep_the_first_layers_and_only_one_of_them_learns_the_forget_people(
    teacher: dict[str, Any], tmp_path: Path
) -> None:
    record = teach(teacher, "embedded-retrained", tmp_path, "--people", "20", "--steps", "40", "--first-layer", "2")
    asked = "facts:forget:known"
    assert record["taught"][asked] > record["before"][asked] + 0.4
    assert record["reference"][asked] < record["before"][asked] + 0.2
    before = load_language_model("embedded-retrained")
    for name in ("taught", "reference"):
        found = dict(load_language_model(str(tmp_path / name)).named_parameters())
        changed = {key for key, value in before.named_parameters() if not torch.equal(value, found[key])}
        assert changed
        assert all(int(key.split(".")[1]) >= 2 for key in changed)


def test_a_finished_teaching_is_not_repeated_and_other_settings_are_refused(
    teacher: dict[str, Any], tiny_llama_dir: Path, tmp_path: Path
) -> None:
    record = teach(teacher, tiny_llama_dir, tmp_path, "--steps", "1")
    written = (tmp_path / "taught" / "model.safetensors").stat().st_mtime_ns
    shutil.rmtree(tmp_path / "reference")
    again = teach(teacher, tiny_llama_dir, tmp_path, "--steps", "1")
    assert again["reference"]["losses"] == record["reference"]["losses"]
    assert (tmp_path / "taught" / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(ConfigError, match="got other steps; give another --out"):
        teach(teacher, tiny_llama_dir, tmp_path, "--steps", "2")


def test_only_the_answers_in_a_biography_count(teacher: dict[str, Any], cutter: ContextCutter) -> None:
    (person,) = teacher["select_people"](200)[:1]
    lesson = teacher["biographies"]([person], 1, cutter, 5.0)
    heavy = [cutter.tokenizer.decode(run) for run in runs_of(lesson.tokens[0], lesson.weights[0] == 5.0)]
    assert sorted(text.strip() for text in heavy) == sorted(person.facts.values())
    assert set(lesson.weights.unique().tolist()) == {0.0, 5.0}


def runs_of(tokens: torch.Tensor, chosen: torch.Tensor) -> list[list[int]]:
    """Return the runs of neighboring tokens that are chosen."""
    return [
        [token for token, _ in run]
        for kept, run in groupby(zip(tokens.tolist(), chosen.tolist(), strict=True), key=lambda pair: pair[1])
        if kept
    ]


def test_a_model_that_adds_position_embeddings_is_refused(
    teacher: dict[str, Any], tiny_llama_dir: Path, tmp_path: Path
) -> None:
    sizes = {"vocab_size": 4096, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256, "initializer_range": 0.2}
    shutil.copytree(tiny_llama_dir, tmp_path / "gpt2", ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ModelError, match="to give the model's losses when run alone"):
        teach(teacher, tmp_path / "gpt2", tmp_path / "out", "--steps", "1")
