"""Finetuning and attacks change a bridge as they change the HookedTransformer of the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mtsae_lens.data.bridges import HookedBridge
from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.data.token_tables import TokenTable, read_tokens
from mtsae_lens.errors import ModelError
from mtsae_lens.opening import open_sae
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning import attacks
from mtsae_lens.unlearning.attacks import quantize, relearn
from mtsae_lens.unlearning.changes import Change
from mtsae_lens.unlearning.finetuning.finetune import FinetuneSettings, finetune
from mtsae_lens.unlearning.finetuning.rmu import RMU
from mtsae_lens.unlearning.finetuning.sweeps import LOSSES

TOKENS = torch.arange(1, 41).view(2, 20)


@pytest.fixture(scope="module")
def bridge(tiny_model_dir: Path) -> Any:
    return load_language_model(f"bridge:{tiny_model_dir}")


@pytest.fixture(scope="module")
def bridged(tiny_sae_dir: Path, tiny_model_dir: Path) -> HookedLM:
    return open_sae(tiny_sae_dir, model=f"bridge:{tiny_model_dir}", device="cpu", batch_size=4)[0]


@pytest.fixture(scope="module")
def forget(cutter: Any, sea_file: Path) -> TokenTable:
    return read_tokens(str(sea_file), "train", cutter, 6)


@pytest.fixture(scope="module")
def retain(cutter: Any, text_file: Path) -> TokenTable:
    return read_tokens(str(text_file), "train", cutter, 4)


def change_of_logits(model: Any, changed: Any) -> torch.Tensor:
    with torch.no_grad():
        change: torch.Tensor = changed(TOKENS, prepend_bos=False) - model(TOKENS, prepend_bos=False)
        return change - change.mean(dim=-1, keepdim=True)


@pytest.mark.parametrize("layer", [0, 1])
def test_rmu_trains_the_same_weights_in_the_same_way(
    layer: int, tiny_model: Any, bridge: Any, cutter: Any, forget: TokenTable, retain: TokenTable
) -> None:
    loss, settings = RMU(layer=layer, n_layers=1), FinetuneSettings(1e-3, 3, 4)
    changes = []
    for model in (tiny_model, bridge):
        assert {parameter.requires_grad for parameter in model.parameters()} == {False}
        (snapshot,) = finetune(model, loss, forget, [retain], cutter, settings)
        changes.append(change_of_logits(model, snapshot.model))
    hooked, bridged = changes
    assert hooked.abs().max() > 0.05
    assert (hooked - bridged).abs().max() < 0.02 * hooked.abs().max()


def test_a_layer_whose_hook_never_fires_is_refused(
    bridge: Any, cutter: Any, forget: TokenTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "run_with_hooks", lambda tokens, fwd_hooks, **options: bridge(tokens, **options))
    with pytest.raises(ModelError, match=r"runs blocks\.0\.hook_resid_post, got bert-t5-gemma, which does not"):
        next(iter(finetune(bridge, RMU(layer=0), forget, [forget], cutter, FinetuneSettings(1e-3, 1, 2))))


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_changes_a_bridge(name: str, bridge: Any, cutter: Any, forget: TokenTable, retain: TokenTable) -> None:
    before = {n: value.clone() for n, value in bridge.named_parameters()}
    loss = LOSSES[name]()
    (snapshot,) = finetune(bridge, loss, forget, [retain], cutter, FinetuneSettings(1e-3, 2, 4, (1,)))
    assert isinstance(snapshot.model, HookedBridge)
    assert all(torch.equal(value, before[n]) for n, value in bridge.named_parameters())
    moved = {n for n, value in snapshot.model.named_parameters() if not torch.equal(value, before[n])}
    assert moved
    assert moved <= set(loss.trained(bridge))
    assert change_of_logits(bridge, snapshot.model).abs().max() > 1e-3


@pytest.mark.parametrize("n_bits", [3, 8])
def test_quantizing_rounds_the_same_matrices(n_bits: int, tiny_model: Any, bridge: Any) -> None:
    hooked, bridged = (change_of_logits(model, quantize(model, n_bits)) for model in (tiny_model, bridge))
    assert hooked.abs().max() > 1e-3
    assert (hooked - bridged).abs().max() < 1e-3 * hooked.abs().max() + 1e-5


def test_a_bridge_without_a_known_matrix_is_refused(bridge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacks, "_INPUT_AXIS", {})
    with pytest.raises(ModelError, match="expected attention or MLP matrices"):
        quantize(bridge, 4)


def test_relearning_and_its_hook(lm: HookedLM, bridged: HookedLM, forget: TokenTable, retain: TokenTable) -> None:
    settings, edit = FinetuneSettings(3e-3, 3, 2, snapshots=(0, 3)), FeatureEdit(tuple(range(16)), 2.0)
    curves = [relearn(one, forget, [forget, retain], settings, edit=edit) for one in (lm, bridged)]
    assert curves[1][0].nll == pytest.approx(curves[0][0].nll, abs=1e-4)
    assert curves[1][1].nll[0] < curves[1][0].nll[0]
    assert curves[1][1].nll[0] == pytest.approx(curves[0][1].nll[0], abs=0.05)
    (snapshot,) = finetune(bridged.model, LOSSES["gradient_ascent"](), forget, [], bridged.cutter, FinetuneSettings(1e-3, 2, 4))
    effects = Change(weights=snapshot.model).effects(bridged, {"sea": forget})
    assert effects["sea"].nll_delta > 0
    after = relearn(bridged, forget, [forget], settings, weights=snapshot.model)
    assert after[-1].nll[0] < after[0].nll[0]


def test_later_layers_alone_move_in_a_bridge(bridge: Any, cutter: Any, forget: TokenTable) -> None:
    (snapshot,) = finetune(bridge, LOSSES["gradient_ascent"](), forget, [], cutter, FinetuneSettings(1e-3, 1, 4, first_layer=1))
    before = dict(bridge.named_parameters())
    changed = {name for name, value in snapshot.model.named_parameters() if not torch.equal(value, before[name])}
    assert changed
    assert not any(".0." in name or name.startswith("embed") for name in changed)
