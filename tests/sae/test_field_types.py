"""Test that values of the wrong type are refused in one line, in every architecture that SAELens has."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from mtsae_lens import MTSAEConfig
from mtsae_lens.errors import ConfigError
from mtsae_lens.sae.config import MTTrainingSAEConfig
from mtsae_lens.sae.field_types import as_whole_numbers, check_fields
from mtsae_lens.upstream import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

CLASSES = {name: pair[1] for registry in (SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY) for name, pair in registry.items()}
WRONG = [math.nan, math.inf, -math.inf, 10**40, object(), {"a": object()}, [["x"]], b"x", {1, 2}, "5x"]


def refusal(config_class: type, name: str, value: Any) -> str | None:
    try:
        check_fields(config_class, {name: value})
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize("architecture", CLASSES)
def test_no_field_of_any_architecture_takes_what_it_cannot_be(architecture: str) -> None:
    config_class = CLASSES[architecture]
    for field in fields(config_class):
        if field.name == "metadata":
            continue
        messages = {repr(value): refusal(config_class, field.name, value) for value in WRONG}
        accepted = [value for value, message in messages.items() if message is None]
        assert all(message is None or message.startswith(f"expected {field.name} to be ") for message in messages.values())
        assert not any("\n" in (message or "") for message in messages.values())
        assert accepted in ([], ["'5x'"]), field.name  # a field of text takes any


@pytest.mark.parametrize("architecture", CLASSES)
def test_the_defaults_of_every_architecture_are_taken(architecture: str) -> None:
    config_class = CLASSES[architecture]
    needs = {"d_out": 8, "matryoshka_widths": [16, 128], "apply_b_dec_to_input": False}
    own = {field.name for field in fields(config_class)}
    config = config_class(d_in=8, d_sae=128, **{name: value for name, value in needs.items() if name in own})
    refused = {name: refusal(config_class, name, value) for name, value in config.to_dict().items()}
    assert set(refused.values()) == {None}, refused


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"k": "abc"}, "^expected k to be a whole number, got 'abc'"),
        ({"k": 4.5}, r"^expected k to be a whole number, got 4\.5"),
        ({"context_size": 0}, "^expected context_size to be at least 1, got 0"),
        ({"k": True}, "^expected k to be a whole number, got True"),
        ({"k": 0}, "^expected k from 1 to d_sae"),
        ({"d_in": 0}, "^expected d_in to be at least 1, got 0"),
        ({"d_sae": -3}, "^expected d_sae to be at least 1, got -3"),
        ({"k": 2**40}, "^expected k to be at most 2,147,483,647, got"),
        ({"context_gain": math.nan}, "^expected context_gain to be a finite number, got nan"),
        ({"context_gain": "1e-3"}, "^expected context_gain to be a number, got '1e-3'"),
        ({"apply_b_dec_to_input": "yes"}, "^expected apply_b_dec_to_input to be true or false, got 'yes'"),
        ({"apply_b_dec_to_input": 1}, "^expected apply_b_dec_to_input to be true or false, got 1"),
        ({"learn_dilations": "no"}, "^expected learn_dilations to be true or false"),
        ({"dilations": 3}, "^expected dilations to be whole numbers in a list, got 3"),
        ({"dilations": [0, 1.5]}, "^expected dilations to be whole numbers in a list"),
        ({"dilations": (0, 2**60)}, "^expected dilations to be at most"),
        ({"max_lag": "far"}, "^expected max_lag to be a whole number or null, got 'far'"),
        ({"padding": 3}, "^expected padding to be one of 'causal', 'circular', 'zero', got 3"),
        ({"dtype": 32}, "^expected dtype to be a text, got 32"),
    ],
)
def test_an_mtsae_is_not_made_of_other_types(values: dict[str, Any], message: str) -> None:
    for config_class in (MTSAEConfig, MTTrainingSAEConfig):
        with pytest.raises(ConfigError, match=message):
            config_class(**({"d_in": 8, "d_sae": 16, "k": 4} | values))


def test_numbers_of_numpy_and_lists_are_taken() -> None:
    config = MTSAEConfig(d_in=np.int64(8), d_sae=16, k=4, dilations=[0, 2], context_gain=1)  # type: ignore[arg-type]
    assert config.dilations == (0, 2)


def test_whole_numbers_written_as_floats() -> None:
    found = as_whole_numbers(MTTrainingSAEConfig, {"k": 1e1, "max_lag": 2.0, "context_gain": 1.0, "kernel_size": 2.5, "x": 3.0})
    assert [(name, type(value)) for name, value in found.items()] == [
        ("k", int),
        ("max_lag", int),
        ("context_gain", float),
        ("kernel_size", float),
        ("x", float),
    ]
