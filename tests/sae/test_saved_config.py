"""Test that an invalid `cfg.json` is refused in one line, before anything is built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.errors import ModelError
from mtsae_lens.opening import load_sae, open_sae


@pytest.fixture
def sae(tmp_path: Path) -> Path:
    made = MTSAE(MTSAEConfig(d_in=8, d_sae=16, k=4, context_size=12))
    made.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    made.save_model(tmp_path / "sae")
    return tmp_path / "sae"


def refused(sae: Path, content: Any) -> str:
    (sae / "cfg.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ModelError) as caught:
        load_sae(sae)
    with pytest.raises(ModelError):
        open_sae(sae)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    assert str(sae) in message
    return message


def test_an_untouched_one_is_loaded(sae: Path) -> None:
    assert load_sae(sae).cfg.k == 4


@pytest.mark.parametrize(
    "values",
    [
        {"context_gain": float("nan")},
        {"apply_b_dec_to_input": "yes"},
        {"apply_b_dec_to_input": None},
        {"dilations": [0, 10**30]},
        {"dilations": "many"},
        {"k": 17},
        {"k": 1.5},
        {"d_in": 0},
        {"d_in": 9},
        {"d_sae": 10**12},
        {"d_sae": None},
        {"dtype": "float3"},
        {"dtype": []},
        {"device": 3},
        {"architecture": ["mtsae"]},
        {"architecture": "moon"},
        {"normalize_activations": {}},
        {"reshape_activations": 3},
    ],
)
def test_values_that_no_sae_has(sae: Path, values: dict[str, Any]) -> None:
    refused(sae, json.loads((sae / "cfg.json").read_text()) | values)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"model_name": 3}, "metadata.model_name: expected a valid string, got '3'"),
        ({"model_name": ["a"]}, "metadata.model_name"),
        ({"hook_name": {}}, "metadata.hook_name"),
        ({"dataset_path": 1.5}, "metadata.dataset_path"),
        ({"context_size": "128"}, "metadata.context_size"),
        ({"context_size": 0}, "metadata.context_size"),
        ({"context_size": True}, "metadata.context_size"),
        ({"prepend_bos": "yes"}, "metadata.prepend_bos"),
        ({"hook_head_index": -1}, "metadata.hook_head_index"),
        ({"model_from_pretrained_kwargs": "float16"}, "metadata.model_from_pretrained_kwargs"),
        ({"local_contents": [1]}, "metadata.local_contents"),
        ([], "a mapping as metadata, got a list"),
        ("x", "a mapping as metadata, got a str"),
    ],
)
def test_metadata_of_other_types(sae: Path, metadata: Any, message: str) -> None:
    assert message in refused(sae, json.loads((sae / "cfg.json").read_text()) | {"metadata": metadata})


@pytest.mark.parametrize(
    "content", ["[]", "null", "3", "", "{", "[" * 100_000, '{"a": ' * 100_000, '{"d_in": ' + "9" * 5000 + "}"]
)
def test_json_that_is_no_configuration(sae: Path, content: str) -> None:
    refused(sae, content)
