"""Test that settings in Python, in YAML and on the command line are checked in the same way."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest

from mtsae_lens.commands.generate import GenerateSettings
from mtsae_lens.commands.unlearn import UnlearnSettings
from mtsae_lens.errors import ConfigError, MTSAEError
from mtsae_lens.experiments.benchmark.run import BenchmarkSettings
from mtsae_lens.settings import parse_assignments
from mtsae_lens.training.recipe import TrainSettings, sae_config, train_sae
from mtsae_lens.yaml_values import MAX_BYTES, parse_yaml


def settings_in(tmp_path: Path, content: str | bytes) -> TrainSettings:
    config = tmp_path / "c.yaml"
    config.write_bytes(content if isinstance(content, bytes) else content.encode())
    return TrainSettings.build(config, {})


def test_a_misspelt_setting_is_told_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"^expected a known setting, got 'd_seae'\. Did you mean 'd_sae'"):
        TrainSettings(out="runs/x", d_seae=4)  # type: ignore[call-arg,arg-type]
    with pytest.raises(ConfigError, match=r"^expected a known setting, got 'd_seae'\. Did you mean 'd_sae'"):
        TrainSettings.build(None, {"out": "runs/x", "d_seae": 4})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": "fast"}, "^setting lr: expected a number, got 'fast'$"),
        ({"seed": 1.5}, "^setting seed: expected a whole number"),
        ({"seed": 10**4000}, "^setting seed: expected a number up to .*, got one of 4,001 digits; give a smaller one$"),
        ({"lr": math.inf}, "^setting lr: expected a finite number"),
        ({"lr": math.nan}, "^setting lr: expected a finite number"),
        ({"out": ""}, "^setting out: expected a value, got an empty text"),
        ({"device": " "}, "^setting device: expected a value, got an empty text"),
        ({"model": "m" * 5000}, r"^expected a name of at most .* bytes, got 5,000 characters \('m+'\.\.\.\)"),
        ({"dataset": "a\0b"}, "^expected a name, got one with a zero byte"),
    ],
)
def test_a_value_of_the_wrong_kind_is_a_config_error_in_python_too(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainSettings(**values)


def test_what_a_validator_of_ours_says_is_said_alone() -> None:
    with pytest.raises(ConfigError, match=r"^expected a known score, got 'frequncy'\. Did you mean"):
        UnlearnSettings(sae="x", forget="kjv", retain=("austen",), scores=("frequncy",))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E3", 1000.0),
        ("+1e+3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("1_000", 1000),
        ("1_000.5", 1000.5),
        ("-3", -3),
        ("010", 10),
        ("0o10", 8),
        ("0x10", 16),
        ("-.inf", -math.inf),
        ("1:30", "1:30"),
        ("2026-13-45", "2026-13-45"),
        ("2026-01-02", "2026-01-02"),
        ("e3", "e3"),
        ("1e", "1e"),
        (".", "."),
        ("yes", True),
        ("~", None),
        ("[1e-2, a]", [0.01, "a"]),
    ],
)
def test_numbers_of_yaml(text: str, value: Any) -> None:
    found = parse_yaml(text, "here:")
    assert (found, type(found)) == (value, type(value))
    assert parse_assignments([f"l1_coefficient={text}"]) == {"l1_coefficient": value}


def test_a_small_number_in_nested_yaml(tmp_path: Path) -> None:
    found = settings_in(tmp_path, "lr: 1e-3\nsae: {l1_coefficient: 1e-2, l1_warm_up_steps: 1_000}\n")
    assert (found.lr, found.sae) == (1e-3, {"l1_coefficient": 1e-2, "l1_warm_up_steps": 1000})


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(12)
)


@pytest.mark.parametrize(
    "value",
    [
        "!!int abc",
        "!!float x",
        "!!bool maybe",
        "!!timestamp x",
        "!!python/object/apply:os.system [echo]",
        "!!python/name:os.system",
        "!!binary =",
        "!!set x",
        "!!int ''",
        "!unknown x",
        "9" * 5000,
        "[" * 3000,
        "{a: " * 3000,
        "&a [*a]",
        "&a {b: *a}",
        "*nowhere",
        "{a: 1, a: 2}",
        "\t- x",
        "{[1]: 2}",
        "\x00",
        "<<: 3",
    ],
)
def test_yaml_that_no_setting_needs_is_one_line(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_assignments([f"k={value}"])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    with pytest.raises(ConfigError) as caught:
        settings_in(tmp_path, f"sae:\n  k: {value}\n")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB, "more than 20,000 values"),
        ("seed: 1\nseed: 2\n", "the key 'seed' is given twice"),
        ("- 1\n", "a mapping of settings to values, got a list"),
        ("null\n", "a mapping of settings to values, got nothing"),
        (b"seed: \xff", "expected YAML in UTF-8, got something else at byte 6"),
        ("#" * (MAX_BYTES + 1), "expected a YAML file of settings, got 1,000,001 bytes"),
    ],
)
def test_files_that_are_no_settings(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_in(tmp_path, content)


def test_a_folder_and_a_pipe_are_no_settings(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="got a pipe or device"):
        TrainSettings.build(tmp_path / "pipe", {})
    with pytest.raises(ConfigError, match="got a folder"):
        TrainSettings.build(tmp_path, {})


def test_the_home_folder_wherever_a_path_may_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    found = settings_in(tmp_path, "out: ~/runs\nmodel: bridge:~/lm\ndataset: ~/a.txt+kjv+~/b.txt\n")
    assert found.out == tmp_path / "runs"
    assert found.model == f"bridge:{tmp_path}/lm"
    assert found.dataset == f"{tmp_path}/a.txt+kjv+{tmp_path}/b.txt"
    lists = UnlearnSettings.build(
        None,
        {"sae": "~/sae", "forget": "~/f", "retain": ["~/r", "kjv"], "near": ["~/n"], "neutral": ["~/x"], "reference": "~/lm"},
    )
    home = str(tmp_path)
    assert (lists.sae, lists.forget, lists.reference) == (tmp_path / "sae", f"{home}/f", f"{home}/lm")
    assert (lists.retain, lists.near, lists.neutral) == ((f"{home}/r", "kjv"), (f"{home}/n",), (f"{home}/x",))
    prompt = GenerateSettings.build(None, {"sae": "~/sae", "edit": "~/edit.json", "prompt": "~/ is home"})
    assert (prompt.edit, prompt.prompt) == (tmp_path / "edit.json", "~/ is home")
    assert BenchmarkSettings(out="~/b").out == tmp_path / "b"  # type: ignore[arg-type]
    (tmp_path / "c.yaml").write_text("seed: 3\n")
    assert TrainSettings.build("~/c.yaml", {}).seed == 3
    with pytest.raises(ConfigError, match=r"which names an unknown user.*give \./~nobody-here"):
        TrainSettings(out="~nobody-here/x")  # type: ignore[arg-type]


@pytest.mark.parametrize("assignment", ["k", "=3"])
def test_assignments_need_a_name_and_a_value(assignment: str) -> None:
    with pytest.raises(ConfigError, match="expected NAME=VALUE"):
        parse_assignments([assignment])


def test_an_assignment_is_given_once() -> None:
    with pytest.raises(ConfigError, match="--set: expected one value for k, got two; give it once"):
        parse_assignments(["k=1", "k=2"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sae": {"metadata": "x"}}, "got --set metadata, which the run records itself; leave it out"),
        ({"sae": {"device": math.inf}}, "got --set device, which belongs to the run; give --device"),
        (
            {"device": "meta"},
            "expected a usable device, got 'meta'",
        ),
        ({"device": "gpu"}, "expected a usable device, got 'gpu'"),
        ({"architecture": "topk", "sae": {"d_sae": -math.inf}}, "expected d_sae to be a whole number"),
        ({"architecture": "topk", "sae": {"k": "many"}}, "expected k to be a whole number, got 'many'"),
        ({"architecture": "batchtopk", "sae": {"k": math.nan}}, "expected k to be a finite number"),
        (
            {"architecture": "matryoshka_batchtopk", "sae": {"matryoshka_widths": 3}},
            "expected matryoshka_widths to be whole numbers",
        ),
        ({"architecture": "standard", "sae": {"l1_coefficient": "1e-3x"}}, "expected l1_coefficient to be a number"),
        ({"architecture": "standard", "sae": {"l1_warm_up_steps": 10**30}}, "expected l1_warm_up_steps to be at most"),
        (
            {"architecture": "jumprelu", "sae": {"jumprelu_sparsity_loss_mode": "up"}},
            "expected jumprelu_sparsity_loss_mode to be one of 'step', 'tanh'",
        ),
        (
            {"architecture": "gated", "sae": {"apply_b_dec_to_input": 1}},
            "expected apply_b_dec_to_input to be true or false, got 1",
        ),
        ({"normalize_activations": "banana"}, "normalize_activations must be"),
        ({"lr_warm_up_steps": 2**60}, "setting lr_warm_up_steps: expected a number up to"),
        ({"batch_size_tokens": 100}, "expected train_batch_size_tokens to be a multiple of context_size"),
    ],
)
def test_settings_of_training_are_checked_before_the_model_is_loaded(
    settings: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("mtsae_lens.training.recipe.load_language_model", load)
    with pytest.raises(MTSAEError, match=message) as caught:
        train_sae(TrainSettings(**({"out": tmp_path / "out"} | settings)))
    assert "\n" not in str(caught.value)


def test_a_whole_number_may_be_written_with_an_exponent(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, "architecture: topk\nsae: {k: 1e1, aux_loss_coefficient: 1}\n")
    made = sae_config(settings, d_in=8)
    assert (made.k, type(made.k)) == (10, int)
