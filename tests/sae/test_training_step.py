"""The sparse training step computes what the dense one does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor
from torch.testing import assert_close

from mtsae_lens import MTTrainingSAE, MTTrainingSAEConfig
from mtsae_lens.errors import ConfigError
from mtsae_lens.sae import training_step
from mtsae_lens.sae.activation_interface import ACTIVATIONS, register_activation
from mtsae_lens.sae.activations import ReLU, TopK
from mtsae_lens.sae.sparse import is_column_major

CONTEXT, D_IN, D_SAE = 12, 8, 40
TOLERANCE = {"rtol": 1e-9, "atol": 1e-11}
QUADRATIC = {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": 3.0, "jumprelu_bandwidth": 0.7}
TANH = {"jumprelu_sparsity_loss_mode": "tanh", "jumprelu_ste_to_input": True, "jumprelu_bandwidth": 0.7}

CASES: dict[str, dict[str, Any]] = {
    "topk": {"k": 4},
    "topk-l2": {"k": 4, "reconstruction_loss": "l2"},
    "topk-without-aux": {"k": 4, "aux_loss_coefficient": 0.0},
    "topk-more-than-positive": {"k": 30},
    "topk-nested": {"k": 6, "hierarchy": "nested"},
    "topk-separation": {"k": 4, "separation_coefficient": 0.3},
    "topk-learned-dilations": {"k": 4, "learn_dilations": True, "max_lag": 6},
    "batchtopk": {"activation": "batchtopk", "k": 3},
    "batchtopk-nested": {"activation": "batchtopk", "k": 3, "hierarchy": "nested"},
    "batchtopk-more-than-positive": {"activation": "batchtopk", "k": 35},
    "topk-matryoshka": {"k": 6, "matryoshka_widths": [5, 10, 20]},
    "batchtopk-matryoshka-memory": {
        "activation": "batchtopk",
        "k": 3,
        "matryoshka_widths": [1, 39],
        "memory": "predictive",
        "dilations": (0,),
    },
    "relu": {"activation": "relu"},
    "relu-nested-l2": {"activation": "relu", "hierarchy": "nested", "reconstruction_loss": "l2"},
    "jumprelu": {"activation": "jumprelu", "jumprelu_bandwidth": 0.7},
    "jumprelu-tanh": {"activation": "jumprelu"} | TANH,
    "jumprelu-quadratic": {"activation": "jumprelu"} | QUADRATIC,
    "jumprelu-pre-act": {"activation": "jumprelu", "pre_act_loss_coefficient": 0.2} | TANH,
    "narrow": {"k": 4, "context_rank": 5},
    "narrow-jumprelu": {"activation": "jumprelu", "context_rank": 5} | TANH,
    "uncentered": {"k": 4, "apply_b_dec_to_input": False},
}


def make(settings: dict[str, Any], **changes: Any) -> MTTrainingSAE:
    defaults: dict[str, Any] = {
        "d_in": D_IN, "d_sae": D_SAE, "context_size": CONTEXT, "dilations": (0, 1, 3), "dtype": "float64", "aux_loss_coefficient": 0.5
    }  # fmt: skip
    torch.manual_seed(0)
    sae = MTTrainingSAE(MTTrainingSAEConfig(**(defaults | settings | changes)))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in sae.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data += (0.3 * noise.abs() if name == "threshold" else 0.3 * noise).to(parameter.dtype)
    return sae


def pair(settings: dict[str, Any], **changes: Any) -> tuple[MTTrainingSAE, MTTrainingSAE]:
    return make(settings, training_step="sparse", **changes), make(settings, training_step="dense", **changes)


def step(sae: MTTrainingSAE, rows: Tensor, dead: Tensor | None = None, *, logged: bool = False) -> TrainStepOutput:
    sae.zero_grad()
    coefficients = {"l1": 0.3, "l0": 0.2, "separation": sae.cfg.separation_coefficient}
    output = sae.training_forward_pass(TrainStepInput(rows, coefficients, dead, n_training_steps=0, is_logging_step=logged))
    output.loss.backward()
    return output


def gradients(sae: MTTrainingSAE) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in sae.named_parameters()}


def check_alike(sparse: MTTrainingSAE, dense: MTTrainingSAE, rows: Tensor, dead: Tensor | None = None) -> TrainStepOutput:
    found, expected = step(sparse, rows, dead, logged=True), step(dense, rows, dead, logged=True)
    assert found.feature_acts.is_sparse
    assert found.feature_acts.is_coalesced()
    assert not expected.feature_acts.is_sparse
    assert_close(found.feature_acts.to_dense(), expected.feature_acts.detach(), **TOLERANCE)
    assert_close(found.hidden_pre, expected.hidden_pre.detach(), **TOLERANCE)
    assert_close(found.sae_out, expected.sae_out, **TOLERANCE)
    assert list(found.losses) == list(expected.losses)
    assert_close(found.losses, expected.losses, **TOLERANCE)
    assert_close(found.metrics, expected.metrics, **TOLERANCE)
    assert_close(gradients(sparse), gradients(dense), **TOLERANCE)
    return found


@pytest.fixture
def rows() -> Tensor:
    rows = torch.randn(4 * CONTEXT, D_IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows[CONTEXT + 5] = 0  # a wall besides those at position 0
    rows[2 * CONTEXT : 3 * CONTEXT] = 0  # and a context of nothing else
    return rows


DEAD = {"none": torch.zeros(D_SAE).bool(), "few": torch.arange(D_SAE) < 3, "many": torch.arange(D_SAE) % 3 > 0, "unknown": None}


@pytest.mark.parametrize("dead", DEAD)
@pytest.mark.parametrize("case", CASES)
def test_the_sparse_step_is_the_dense_one(case: str, dead: str, rows: Tensor) -> None:
    sparse, dense = pair(CASES[case])
    output = check_alike(sparse, dense, rows, DEAD[dead])
    assert output.feature_acts._nnz() > 0


@pytest.mark.parametrize("case", CASES)
def test_without_walls_too(case: str, rows: Tensor) -> None:
    rows = torch.where(rows == 0, rows.roll(CONTEXT, dims=0) + 0.5, rows)
    check_alike(*pair(CASES[case], skip_first_position=False), rows, DEAD["few"])


@pytest.mark.parametrize("case", ["topk", "batchtopk", "relu", "jumprelu"])
def test_a_batch_on_which_no_feature_is_active(case: str, rows: Tensor) -> None:
    sparse, dense = pair(CASES[case], aux_loss_coefficient=0.0)
    for sae in (sparse, dense):
        sae.b_enc.data -= 100.0
    output = check_alike(sparse, dense, rows)
    assert output.feature_acts._nnz() == 0
    assert output.loss > 0


@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_end_at_the_same_weights(case: str, rows: Tensor) -> None:
    sparse, dense = pair(CASES[case])
    start = copy.deepcopy(sparse.state_dict())
    generator = torch.Generator().manual_seed(2)
    optimizers = [torch.optim.AdamW(sae.parameters(), lr=3e-3) for sae in (sparse, dense)]
    for _ in range(20):
        batch = torch.where(rows == 0, 0, torch.randn(rows.shape, generator=generator, dtype=torch.float64))
        for sae, optimizer in zip((sparse, dense), optimizers, strict=True):
            step(sae, batch, DEAD["few"])
            optimizer.step()
    assert_close(sparse.state_dict(), dense.state_dict(), rtol=1e-6, atol=1e-8)
    assert not torch.allclose(sparse.W_enc, start["W_enc"], atol=1e-3)


@pytest.mark.parametrize("case", ["topk", "jumprelu-tanh"])
def test_in_float32_within_its_rounding(case: str, rows: Tensor) -> None:
    sparse, dense = pair(CASES[case], dtype="float32")
    step(sparse, rows.float(), DEAD["few"])
    step(dense, rows.float(), DEAD["few"])
    assert_close(gradients(sparse), gradients(dense), rtol=1e-3, atol=1e-5)


def test_autocast_keeps_the_gradients_in_the_dtype_of_the_weights(rows: Tensor) -> None:
    sparse, dense = pair(CASES["topk"], dtype="float32")
    for sae in (sparse, dense):
        with torch.autocast("cpu", torch.bfloat16):
            step(sae, rows.float(), DEAD["few"])
    assert all(gradient is None or gradient.dtype == torch.float32 for gradient in gradients(sparse).values())
    assert_close(sparse.W_dec.grad, dense.W_dec.grad, rtol=0.1, atol=0.05)


def test_a_nan_reaches_the_loss(rows: Tensor) -> None:
    for case in ("topk", "batchtopk", "relu", "jumprelu"):
        sparse, _ = pair(CASES[case])
        sparse.W_enc.data[:, 3] = torch.nan
        assert step(sparse, rows).loss.isnan()


# the choice -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["topk", "batchtopk", "relu", "jumprelu"])
def test_auto_is_sparse_where_few_features_are_active(activation: str, rows: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    sae = make({"activation": activation, "k": 4}, aux_loss_coefficient=0.0)
    share = step(sae, rows).feature_acts.to_dense().count_nonzero() / (len(rows) * D_SAE)
    for limit, expected in ((1.5 * float(share) + 0.2, True), (0.5 * float(share), False)):
        monkeypatch.setattr(training_step, "_MOST_DENSE", {"cpu": limit})
        assert step(sae, rows).feature_acts.is_sparse is expected
    monkeypatch.setattr(training_step, "_MOST_DENSE", {"cuda": 1.0})
    assert not step(sae, rows).feature_acts.is_sparse


def test_entries_of_the_losses_count_too(rows: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    sae = make({"k": 2})
    monkeypatch.setattr(training_step, "_MOST_DENSE", {"cpu": 0.08})
    assert step(sae, rows, DEAD["none"]).feature_acts.is_sparse
    assert not step(sae, rows, DEAD["many"]).feature_acts.is_sparse


@pytest.mark.parametrize("hook_name", ["hook_sae_acts_pre", "hook_sae_acts_post"])
def test_a_hook_on_the_features_sees_all_of_them(hook_name: str, rows: Tensor) -> None:
    sae, seen = make({"k": 4, "training_step": "sparse"}), []
    getattr(sae, hook_name).add_hook(lambda value, hook: seen.append(value))
    output = step(sae, rows)
    assert [tuple(value.shape) for value in seen] == [(len(rows), D_SAE)]
    assert not output.feature_acts.is_sparse
    sae.reset_hooks()
    assert step(sae, rows).feature_acts.is_sparse


def test_a_hook_on_the_reconstruction_is_called(rows: Tensor) -> None:
    results = []
    for sae in pair(CASES["topk"]):
        sae.hook_sae_recons.add_hook(lambda value, hook: 2 * value)
        results.append(step(sae, rows).loss)
    assert_close(*results, **TOLERANCE)


def test_an_activation_that_changes_the_dense_step_alone_has_no_sparse_one(rows: Tensor) -> None:
    class WithoutLosses(ReLU):
        def losses(self, *args: Any) -> dict[str, Tensor]:
            return {}

    class Renamed(TopK):
        pass

    assert not WithoutLosses("without_losses").has_sparse_step
    assert Renamed("renamed").has_sparse_step
    register_activation("without_losses")(WithoutLosses)
    try:
        with pytest.raises(ConfigError, match=r"expected an activation that can list .* for training_step='sparse'"):
            make({"activation": "without_losses"}, training_step="sparse")
        assert not step(make({"activation": "without_losses"}), rows).feature_acts.is_sparse
    finally:
        del ACTIVATIONS["without_losses"]


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected training_step to be one of 'auto', 'sparse', 'dense', got 'fast'"):
        make({}, training_step="fast")


# layout ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["sparse", "dense"])
@pytest.mark.parametrize("hierarchy", ["none", "nested"])
def test_the_gradient_of_the_encoder_is_laid_out_as_the_encoder(way: str, hierarchy: str, rows: Tensor) -> None:
    sae = make({"k": 4}, training_step=way, hierarchy=hierarchy)
    assert is_column_major(sae.W_enc)
    step(sae, rows)
    assert sae.W_enc.grad is not None
    assert is_column_major(sae.W_enc.grad)


def test_a_row_major_encoder_gives_the_same(rows: Tensor) -> None:
    sparse, dense = pair(CASES["topk"])
    sparse.W_enc.data = sparse.W_enc.data.contiguous()
    check_alike(sparse, dense, rows, DEAD["few"])


def test_saved_and_loaded(rows: Tensor, tmp_path: Any) -> None:
    sae = make({"k": 4})
    sae.save_model(tmp_path)
    loaded = MTTrainingSAE.load_from_disk(tmp_path)
    assert is_column_major(loaded.W_enc)
    assert_close(loaded.state_dict(), sae.state_dict(), rtol=0, atol=0)
    assert_close(step(loaded, rows).loss, step(sae, rows).loss)
