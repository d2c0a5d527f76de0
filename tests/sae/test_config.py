"""Test which configurations are refused, and that configurations survive JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sae_lens.saes.sae import SAEConfig, SAEMetadata, TrainingSAEConfig

from mtsae_lens import MTSAEConfig, MTTrainingSAEConfig
from mtsae_lens.errors import ConfigError

BOTH = [MTSAEConfig, MTTrainingSAEConfig]


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"dilations": ()}, ["dilations", "()"]),
        ({"dilations": (-1, 1)}, ["dilations", "0 for the token alone", "(-1, 1)"]),
        ({"dilations": (0, 1, 0)}, ["dilations", "differ", "(0, 1, 0)"]),
        ({"dilations": (1, 2.5)}, ["dilations", "whole", "2.5"]),
        ({"dilations": (2, 2)}, ["dilations", "differ", "(2, 2)"]),
        ({"padding": "same"}, ["padding", "'causal'", "'circular'", "'zero'", "'same'"]),
        ({"scale_norm": "rms"}, ["scale_norm", "'rescaled_layer_norm'", "'layer_norm'", "'none'", "'rms'"]),
        ({"activation": "gelu"}, ["activation", "topk", "relu", "'gelu'"]),
        ({"kernel_size": 0}, ["kernel_size", "positive", "0"]),
        ({"kernel_size": 4, "padding": "zero"}, ["kernel_size", "odd", "4"]),
        ({"kernel_size": 2, "padding": "circular"}, ["kernel_size", "odd", "2"]),
        ({"context_gain": 0.0}, ["context_gain", "positive", "0.0"]),
        ({"context_gain": -1.0}, ["context_gain", "positive", "-1.0"]),
        ({"k": 0}, ["k ", "from 1 to d_sae=64", "0"]),
        ({"k": 65}, ["k ", "d_sae=64", "65"]),
        ({"kernel_size": 1}, ["kernel_size=1", "(0, 1, 2, 4, 8)", "one dilation"]),
        ({"context_size": 1}, ["context_size", "2", "1"]),
        ({"hierarchy": "matryoshka"}, ["hierarchy", "'none'", "'nested'", "'matryoshka'"]),
        ({"hierarchy": "nested", "dilations": (3,)}, ["nested", "two dilations", "(3,)"]),
        ({"hierarchy": "nested", "dilations": tuple(range(65))}, ["nested", "a feature for each", "d_sae=64"]),
        ({"max_lag": 5}, ["max_lag=5", "learn_dilations=True"]),
        ({"learn_dilations": True, "padding": "zero"}, ["learn_dilations", "'causal'", "'zero'"]),
        ({"learn_dilations": True, "padding": "circular"}, ["learn_dilations", "'causal'", "'circular'"]),
        ({"learn_dilations": True, "kernel_size": 1, "dilations": (1,)}, ["learn_dilations", "kernel_size", "2", "1"]),
        ({"learn_dilations": True, "max_lag": 1}, ["max_lag", "from 2 to", "(127)", "1"]),
        ({"learn_dilations": True, "max_lag": 128}, ["max_lag", "(127)", "128"]),
        ({"learn_dilations": True, "max_lag": 6}, ["max_lag=6", "(0, 1, 2, 4, 8)"]),
        ({"learn_dilations": True, "dilations": (0,)}, ["expected a dilation above 0", "(0,)"]),
        ({"learn_dilations": True, "max_lag": 6.0}, ["max_lag", "6.0"]),
        ({"normalize_activations": "covariance_whitening"}, ["covariance_whitening", "expected_average_only_in"]),
        ({"normalize_activations": "layer_norm"}, ["'layer_norm'", "expected_average_only_in"]),
        ({"normalize_activations": "constant_norm_rescale"}, ["constant_norm_rescale", "expected_average_only_in"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", BOTH)
def test_refusals(kind: type[Any], settings: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        kind(d_in=8, d_sae=64, **settings)
    assert [name for name in names if name not in str(error.value)] == []


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"matryoshka_widths": [8, 8]}, ["matryoshka_widths that grow", "d_sae=64", "[8, 8]", "[8, 16, 32]"]),
        ({"matryoshka_widths": [8, 65]}, ["matryoshka_widths that grow", "d_sae=64", "[8, 65]"]),
        ({"matryoshka_widths": [8], "hierarchy": "nested"}, ["hierarchy='none'", "matryoshka_widths=[8]", "'nested'"]),
        ({"reconstruction_loss": "l1"}, ["reconstruction_loss", "'mse'", "'l2'", "'l1'"]),
        ({"tap_init": "zeros"}, ["tap_init", "'near'", "'far'", "'alike'", "'conv'", "'zeros'"]),
        ({"separation": "cosin"}, ["separation", "'cosine'", "'decorrelation'", "'cka'", "'taps'", "'cosin'"]),
        ({"l1_coefficient": -1.0}, ["l1_coefficient", "-1.0"]),
        ({"separation_coefficient": -0.1}, ["separation_coefficient", "-0.1"]),
        ({"aux_loss_coefficient": -2}, ["aux_loss_coefficient", "-2"]),
    ],
    ids=str,
)
def test_refusals_in_training(settings: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        MTTrainingSAEConfig(d_in=8, d_sae=64, **settings)
    assert [name for name in names if name not in str(error.value)] == []


@pytest.mark.parametrize("kind", BOTH)
def test_what_stands_at_the_edge_is_accepted(kind: type[Any]) -> None:
    scaled = "expected_average_only_in"
    cfg = kind(d_in=8, d_sae=64, k=64, context_size=2, kernel_size=2, dilations=(1,), normalize_activations=scaled)
    assert (cfg.k, cfg.context_size, cfg.kernel_size) == (64, 2, 2)
    assert kind(d_in=8, d_sae=64, k=1, kernel_size=1, dilations=(1,), padding="zero").kernel_size == 1
    assert kind(d_in=8, d_sae=64, k=1000, activation="relu").k == 1000  # unused, so not checked


@pytest.mark.parametrize("kind", BOTH)
def test_learned_dilations_reach_the_whole_context_unless_told(kind: type[Any]) -> None:
    assert kind(d_in=8, d_sae=64, learn_dilations=True, context_size=40).max_lag == 39
    assert kind(d_in=8, d_sae=64, learn_dilations=True, context_size=40, max_lag=8).max_lag == 8
    assert kind(d_in=8, d_sae=64).max_lag is None


@pytest.mark.parametrize("kind", BOTH)
def test_the_token_alone_is_a_scale_by_default(kind: type[Any]) -> None:
    assert kind(d_in=8, d_sae=64).dilations == (0, 1, 2, 4, 8)
    assert kind(d_in=8, d_sae=64, dilations=[0]).dilations == (0,)


@pytest.mark.parametrize("kind", BOTH)
def test_an_unknown_key_raises(kind: type[Any]) -> None:
    with pytest.raises(TypeError, match="dilatoins"):
        kind(d_in=8, d_sae=64, dilatoins=(1, 2))


def test_paper() -> None:
    cfg = MTTrainingSAEConfig.paper(8, 64)
    expected = {
        "d_in": 8,
        "d_sae": 64,
        "dilations": (1, 2, 4, 8),
        "kernel_size": 3,
        "padding": "circular",
        "scale_norm": "layer_norm",
        "activation": "relu",
        "reconstruction_loss": "l2",
        "l1_coefficient": 0.04,
        "separation_coefficient": 0.1,
        "tap_init": "conv",
        "context_gain": 1.0,
        "normalize_decoder": True,
        "skip_first_position": True,  # position 0 is masked in training too
    }
    assert {name: getattr(cfg, name) for name in expected} == expected
    assert MTTrainingSAEConfig.paper(8, 64, padding="causal", dtype="float64").padding == "causal"
    with pytest.raises(TypeError, match="lambda1"):
        MTTrainingSAEConfig.paper(8, 64, lambda1=0.04)


@pytest.mark.parametrize(("kind", "base"), list(zip(BOTH, [SAEConfig, TrainingSAEConfig], strict=True)))
@pytest.mark.parametrize(
    "changes",
    [{}, {"padding": "causal", "learn_dilations": True, "max_lag": 9, "hierarchy": "nested"}],
    ids=["fixed", "learned"],
)
def test_json_round_trip(kind: type[Any], base: type[Any], changes: dict[str, Any]) -> None:
    settings = {
        "dilations": (3, 1, 9),
        "padding": "zero",
        "scale_norm": "none",
        "k": 5,
        "context_size": 17,
        "skip_first_position": False,
        **changes,
    }
    cfg = kind(d_in=8, d_sae=64, metadata=SAEMetadata(hook_name="blocks.1.hook_resid_pre"), **settings)
    text = json.dumps(cfg.to_dict())
    assert json.loads(text)["architecture"] == "mtsae"
    back = base.from_dict(json.loads(text))
    assert type(back) is kind
    assert back == cfg
    assert back.dilations == (3, 1, 9)
    assert isinstance(back.dilations, tuple)


def test_training_knows_every_field_of_inference() -> None:
    training, inference = (set(kind.__dataclass_fields__) for kind in (MTTrainingSAEConfig, MTSAEConfig))
    assert inference <= training
    cfg = MTTrainingSAEConfig(d_in=8, d_sae=64, dilations=(1, 5))
    as_inference = SAEConfig.from_dict(json.loads(json.dumps(cfg.get_inference_sae_cfg_dict())))
    assert type(as_inference) is MTSAEConfig
    assert as_inference.dilations == (1, 5)
