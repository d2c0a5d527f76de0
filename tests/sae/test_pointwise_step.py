"""The sparse step of SAELens's own TopK and BatchTopK SAEs is SAELens's step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sae_lens import BatchTopKTrainingSAEConfig, MatryoshkaBatchTopKTrainingSAEConfig, TopKTrainingSAEConfig, TrainingSAE
from torch.testing import assert_close

from mtsae_lens.sae.pointwise_step import take_sparse_step
from mtsae_lens.upstream import TrainStepInput

D_IN, D_SAE, K = 16, 256, 4
CONFIGS = {"topk": TopKTrainingSAEConfig, "batchtopk": BatchTopKTrainingSAEConfig}


def make(name: str = "topk", **settings: Any) -> TrainingSAE[Any]:
    """An SAE whose decoder rows differ in norm, and whose biases are not zero."""
    torch.manual_seed(0)
    sae: TrainingSAE[Any] = TrainingSAE.from_dict(CONFIGS[name](d_in=D_IN, d_sae=D_SAE, k=K, **settings).to_dict())
    with torch.no_grad():
        sae.W_dec.mul_(torch.rand(D_SAE, 1) + 0.5)
        sae.W_enc.add_(0.1 * torch.randn(D_IN, D_SAE))
        sae.b_dec.copy_(torch.randn(D_IN))
        sae.b_enc.copy_(0.1 * torch.randn(D_SAE))
    return sae


def step_input(n_dead: int = 0) -> TrainStepInput:
    x = torch.randn(40, D_IN, generator=torch.Generator().manual_seed(1))
    return TrainStepInput(
        sae_in=x,
        coefficients={},
        dead_neuron_mask=torch.arange(D_SAE) < n_dead,
        n_training_steps=1,
        is_logging_step=False,
    )


@pytest.mark.parametrize("name", ["topk", "batchtopk"])
@pytest.mark.parametrize("n_dead", [0, 3, 12])
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("centered", [True, False])
def test_it_is_saelens_step(name: str, n_dead: int, rescale: bool, centered: bool) -> None:
    settings = {"rescale_acts_by_decoder_norm": rescale, "apply_b_dec_to_input": centered}
    saes = [make(name, **settings), make(name, **settings)]
    given = step_input(n_dead)
    found = take_sparse_step(saes[0], given)
    assert found is not None
    expected = saes[1].training_forward_pass(given)
    for output in (found, expected):
        output.loss.backward()
    assert found.losses.keys() == expected.losses.keys()
    assert n_dead == 0 or found.losses["auxiliary_reconstruction_loss"] > 0
    for loss, value in expected.losses.items():
        assert_close(found.losses[loss], value)
    assert_close(found.feature_acts.to_dense(), expected.feature_acts.detach())
    assert_close(found.sae_out, expected.sae_out)
    assert_close(found.hidden_pre, expected.hidden_pre.detach())
    for (parameter, own), other in zip(saes[0].named_parameters(), saes[1].parameters(), strict=True):
        assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-5, msg=lambda text, name=parameter: f"{name}: {text}")
    assert_close(dict(saes[0].named_buffers()), dict(saes[1].named_buffers()))


def test_it_leaves_other_saes_to_saelens() -> None:
    matryoshka = MatryoshkaBatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K, matryoshka_widths=[64, D_SAE])
    hooked = make()
    hooked.hook_sae_acts_post.register_forward_hook(lambda *_: None)
    compiled = make()
    compiled.training_forward_pass = compiled.training_forward_pass  # type: ignore[method-assign]  # as `compile_sae` does
    refused = {
        "a step in the place of its own": compiled,
        "another class": TrainingSAE.from_dict(matryoshka.to_dict()),
        "a hook": hooked,
        "SAELens's own sparse matrices": make(use_sparse_activations=True, rescale_acts_by_decoder_norm=False),
        "a normalized input": make(normalize_activations="layer_norm"),
        "many active features": make(),
        "another precision": make().to(torch.float64),
    }
    refused["many active features"].cfg.k = D_SAE // 2
    for reason, sae in refused.items():
        assert take_sparse_step(sae, step_input()) is None, reason
    with torch.autocast("cpu", torch.bfloat16):
        assert take_sparse_step(make(), step_input()) is None
    assert take_sparse_step(make(), step_input(n_dead=200)) is not None  # AuxK of so many features is still few entries
