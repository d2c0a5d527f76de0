"""Test registration: once, repeatedly, after a reload, and against another package with the same name."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from sae_lens import SAE, StandardSAE, StandardSAEConfig, StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY, get_sae_class, get_sae_training_class
from sae_lens.saes.sae import TrainingSAE

import mtsae_lens
from mtsae_lens import MTSAE, MTSAEConfig, MTTrainingSAE, MTTrainingSAEConfig
from mtsae_lens.sae.registration import register

REGISTRIES = [
    (SAE_CLASS_REGISTRY, (MTSAE, MTSAEConfig), (StandardSAE, StandardSAEConfig)),
    (SAE_TRAINING_CLASS_REGISTRY, (MTTrainingSAE, MTTrainingSAEConfig), (StandardTrainingSAE, StandardTrainingSAEConfig)),
]


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry, own, _ in REGISTRIES:
        monkeypatch.setitem(registry, "mtsae", own)


def assert_registered() -> None:
    assert get_sae_class("mtsae") == (MTSAE, MTSAEConfig)
    assert get_sae_training_class("mtsae") == (MTTrainingSAE, MTTrainingSAEConfig)


def test_importing_registers() -> None:
    assert_registered()
    assert SAE.get_sae_class_for_architecture("mtsae") is MTSAE
    assert TrainingSAE.get_sae_class_for_architecture("mtsae") is MTTrainingSAE


def test_registering_twice_is_fine() -> None:
    register()
    register()
    assert_registered()


def test_reloading_the_package_is_fine() -> None:
    assert importlib.reload(mtsae_lens) is mtsae_lens
    assert_registered()


@pytest.mark.parametrize(("registry", "own", "_"), REGISTRIES, ids=["inference", "training"])
def test_a_reloaded_class_replaces_the_old_one(registry: dict[str, Any], own: tuple[type, type], _: Any) -> None:
    old = type(own[0].__name__, (own[0],), {"__module__": own[0].__module__, "__qualname__": own[0].__qualname__})
    registry["mtsae"] = (old, own[1])
    register()
    assert_registered()


@pytest.mark.parametrize(("registry", "_", "foreign"), REGISTRIES, ids=["inference", "training"])
def test_a_foreign_class_of_the_same_name_raises(registry: dict[str, Any], _: Any, foreign: tuple[type, type]) -> None:
    registry["mtsae"] = foreign
    with pytest.raises(ValueError, match="already registered as 'mtsae'"):
        register()
    assert registry["mtsae"] == foreign
