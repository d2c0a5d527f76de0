"""Test the `Dictionary` interface of SAELens SAEs, temporal and pointwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.errors import DataError, ModelError
from mtsae_lens.interop.dictionary_learning import SAELensDictionary
from mtsae_lens.interop.hub import upload_sae


def random_sae(kind: str) -> SAE[Any]:
    sizes: dict[str, Any] = {"d_in": 8, "d_sae": 24}
    sae: SAE[Any] = {
        "mtsae": lambda: MTSAE(MTSAEConfig(k=4, context_size=16, **sizes)),
        "topk": lambda: TopKSAE(TopKSAEConfig(k=4, **sizes)),
        "standard": lambda: StandardSAE(StandardSAEConfig(**sizes)),
    }[kind]()
    generator = torch.Generator().manual_seed(0)
    for parameter in sae.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator)
    return sae.requires_grad_(False)


def squared_error(dictionary: Any, batches: list[torch.Tensor]) -> float:
    """As the library's `evaluate` calls a dictionary."""
    total = 0.0
    for x in batches:
        x_hat, f = dictionary(x, output_features=True)
        assert f.shape[-1] == dictionary.dict_size
        total += (x - x_hat).pow(2).sum(-1).mean().item()
    return total / len(batches)


@pytest.mark.parametrize("kind", ["mtsae", "topk", "standard"])
def test_the_interface(kind: str) -> None:
    sae = random_sae(kind)
    dictionary = SAELensDictionary(sae)
    assert (dictionary.activation_dim, dictionary.dict_size) == (8, 24)
    x = torch.randn(3, 16, 8, generator=torch.Generator().manual_seed(1))
    f = dictionary.encode(x)
    assert torch.equal(f, sae.encode(x))
    assert (f > 0).any()
    assert torch.equal(dictionary.decode(f), sae.decode(f))
    assert torch.equal(dictionary(x), sae(x))
    x_hat, features = dictionary(x, output_features=True)
    assert torch.equal(x_hat, dictionary(x))
    assert torch.equal(features, f)
    assert squared_error(dictionary, [x, x]) == pytest.approx((x - sae(x)).pow(2).sum(-1).mean().item())


def test_shuffled_positions_are_refused_for_a_temporal_sae_alone() -> None:
    x = torch.randn(48, 8, generator=torch.Generator().manual_seed(1))
    with pytest.raises(DataError, match=r"\(batch, pos, 8\)"):
        SAELensDictionary(random_sae("mtsae")).encode(x)
    assert SAELensDictionary(random_sae("topk"))(x).shape == x.shape


def test_from_pretrained(hub: Any, tmp_path: Path) -> None:
    sae = random_sae("mtsae")
    sae.save_model(tmp_path / "sae")
    upload_sae(tmp_path / "sae", "me/things", "a")
    x = torch.randn(3, 16, 8, generator=torch.Generator().manual_seed(1))
    for place in (tmp_path / "sae", str(tmp_path / "sae"), "hub:me/things:a"):
        assert torch.equal(SAELensDictionary.from_pretrained(place)(x), sae(x))
    with pytest.raises(ModelError, match="expected an SAE in SAELens's layout"):
        SAELensDictionary.from_pretrained(tmp_path)


@pytest.mark.parametrize("damage", [lambda content: content[:100], lambda content: b""])
def test_a_damaged_sae_is_no_sae(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    random_sae("topk").save_model(tmp_path)
    weights = tmp_path / "sae_weights.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(ModelError, match="expected an SAE in SAELens's layout"):
        SAELensDictionary.from_pretrained(tmp_path)
