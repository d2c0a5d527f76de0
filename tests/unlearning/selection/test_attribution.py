"""Test that attribution is the derivative of the loss, feature by feature, for any SAE at any hook."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from several_ranks import on_ranks
from torch.testing import assert_close

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.data.token_tables import TokenTable, read_tokens
from mtsae_lens.errors import DataError
from mtsae_lens.splice.attribution import attribution, loss_change
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.splicing import Splice
from mtsae_lens.unlearning.measures.effects import measure_edits
from mtsae_lens.unlearning.selection.attribution import single_feature_effects

D_SAE = 16
EPSILON = 1e-4
HOOKS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre", "blocks.0.hook_mlp_out", "blocks.0.attn.hook_z"]


def exact_lm(model: Any, cutter: Any, hook_name: str, architecture: str) -> HookedLM:
    """Random weights in float64: differences of losses are as exact as derivatives."""
    torch.manual_seed(1)
    metadata = SAEMetadata(hook_name=hook_name)
    sizes: dict[str, Any] = {"d_in": 32, "d_sae": D_SAE, "k": 5, "metadata": metadata, "dtype": "float64"}
    sae: Any = MTSAE(MTSAEConfig(**sizes, context_size=32)) if architecture == "mtsae" else TopKSAE(TopKSAEConfig(**sizes))
    for parameter in sae.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return HookedLM(model, Splice(sae), cutter, batch_size=1)


def lm_with_memory(model: Any, cutter: Any) -> HookedLM:
    metadata = SAEMetadata(hook_name=HOOKS[0])
    sizes: dict[str, Any] = {"d_in": 32, "d_sae": D_SAE, "k": 5, "metadata": metadata, "dtype": "float64"}
    sae = MTSAE(MTSAEConfig(**sizes, context_size=32, dilations=(0,), memory="predictive"))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in sae.named_parameters():
        parameter.data += (0.05 if "memory" in name else 0.3) * torch.randn(parameter.shape, generator=generator)
    return HookedLM(model, Splice(sae), cutter, batch_size=1)


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> Any:
    exact = load_language_model(str(tiny_model_dir))  # a copy of `tiny_model` would call the original's layers
    for part in exact.modules():
        if hasattr(part, "cfg"):
            part.cfg.dtype = torch.float64
    return exact.double()


@pytest.fixture(scope="module")
def table(cutter: Any, text_file: Path, sea_file: Path) -> TokenTable:
    parts = [read_tokens(str(path), "test", cutter, 1) for path in (text_file, sea_file)]
    tokens = torch.cat([part.tokens for part in parts])
    tokens[1, 17] = 0  # a separator: masked
    return TokenTable("mixed", tokens, tuple("ab"))


def derivative(lm: HookedLM, table: TokenTable, *, carried: bool = False) -> torch.Tensor:
    """`(L(e_i (1 - epsilon)) - L(e_i (1 + epsilon))) / (2 epsilon)` for every feature i."""
    scaled = [[FeatureEdit((i,), -(1 - sign * EPSILON), carried=carried) for i in range(D_SAE)] for sign in (1, -1)]
    less, more = ([effect.nll_delta for effect in measure_edits(lm, table, edits)] for edits in scaled)
    return (torch.tensor(less) - torch.tensor(more)) / (2 * EPSILON)


@pytest.mark.parametrize("hook_name", HOOKS)
@pytest.mark.parametrize("architecture", ["mtsae", "topk"])
def test_attribution_is_the_derivative_of_scaling_each_feature(
    architecture: str, hook_name: str, model: Any, cutter: Any, table: TokenTable
) -> None:
    lm = exact_lm(model, cutter, hook_name, architecture)
    expected = derivative(lm, table)
    assert (expected.abs() > 1e-4).sum() > D_SAE / 2  # most features matter, so equality says something
    torch.testing.assert_close(attribution(lm, table), expected, atol=2e-6, rtol=1e-3)


def test_attribution_of_an_edit_that_is_carried_on_runs_through_the_memory(model: Any, cutter: Any, table: TokenTable) -> None:
    lm = lm_with_memory(model, cutter)
    expected = {carried: derivative(lm, table, carried=carried) for carried in (False, True)}
    assert ((expected[True] - expected[False]).abs() > 1e-4).sum() > D_SAE / 2
    for carried, exact in expected.items():
        torch.testing.assert_close(attribution(lm, table, carried=carried), exact, atol=2e-6, rtol=1e-3)
        (effect,) = measure_edits(lm, table, [FeatureEdit((1,), carried=carried)])
        assert single_feature_effects(lm, table, (1,), carried=carried).item() == pytest.approx(effect.nll_delta)


def test_ranks_share_the_batches(model: Any, cutter: Any, table: TokenTable, tmp_path: Path) -> None:
    lm = exact_lm(model, cutter, HOOKS[0], "mtsae")
    expected = loss_change(lm, table)

    def work() -> None:
        counted = []
        count = dataclasses.replace(lm)
        object.__setattr__(count, "activations", lambda tokens: counted.append(len(tokens)) or lm.activations(tokens))
        found = loss_change(count, table, shared=True)
        assert 0 < sum(counted) < len(table)
        assert_close(found.first_order, expected.first_order)
        assert_close(found.fisher, expected.fisher)

    assert on_ranks(2, tmp_path / "ranks", work) == [(0, "")] * 2
    assert_close(loss_change(lm, table, shared=True).first_order, expected.first_order)  # alone


def test_only_counted_predictions_are_attributed(model: Any, cutter: Any, table: TokenTable) -> None:
    lm = exact_lm(model, cutter, HOOKS[0], "mtsae")
    answers = torch.zeros_like(table.tokens, dtype=torch.bool)
    answers[:, -2:] = True
    asked = dataclasses.replace(table, answers=answers)
    torch.testing.assert_close(attribution(lm, asked), derivative(lm, asked), atol=2e-6, rtol=1e-3)
    assert not torch.allclose(attribution(lm, asked), attribution(lm, table), atol=1e-3)


def test_for_a_linear_decoder_it_is_the_inner_product_with_the_gradient(model: Any, cutter: Any, table: TokenTable) -> None:
    """The formula, with the gradient taken at the hook of a whole forward pass."""
    lm = exact_lm(model, cutter, HOOKS[0], "topk")
    tokens = table.tokens
    h = lm.activations(tokens).requires_grad_()
    logits = model.run_with_hooks(tokens, fwd_hooks=[(HOOKS[0], lambda _, hook: h)], prepend_bos=False)
    targets = tokens[:, 1:]
    nll = -logits.log_softmax(-1)[:, :-1].gather(-1, targets[..., None])[..., 0]
    (gradient,) = torch.autograd.grad(nll[targets != 0].sum(), h)
    expected, squares = torch.zeros(2, D_SAE, dtype=torch.float64)
    feature_acts = lm.feature_acts(tokens)
    for row in range(len(tokens)):
        for position in range(tokens.shape[1]):
            change = -feature_acts[row, position] * (lm.sae.W_dec.detach() @ gradient[row, position])
            expected += change
            squares += change**2
    n_counted = (targets != 0).sum()
    found = loss_change(lm, table)
    torch.testing.assert_close(found.first_order, (expected / n_counted).float(), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found.fisher, (squares / n_counted / 2).float(), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found.second_order, found.first_order + found.fisher)


def test_the_size_of_a_batch_changes_nothing_and_no_graph_is_left(model: Any, cutter: Any, table: TokenTable) -> None:
    lm = exact_lm(model, cutter, HOOKS[0], "mtsae")
    found = attribution(lm, table)
    torch.testing.assert_close(found, attribution(dataclasses.replace(lm, batch_size=2), table))
    assert not found.requires_grad
    assert all(parameter.grad is None for parameter in lm.sae.parameters())


def test_nothing_counted_is_refused(model: Any, cutter: Any, table: TokenTable) -> None:
    nothing = dataclasses.replace(table, answers=torch.zeros_like(table.tokens, dtype=torch.bool))
    with pytest.raises(DataError, match="expected tokens whose prediction is counted"):
        attribution(exact_lm(model, cutter, HOOKS[0], "topk"), nothing)


def test_single_effects_are_those_of_edits_of_one_feature(model: Any, cutter: Any, table: TokenTable) -> None:
    lm = exact_lm(model, cutter, HOOKS[0], "mtsae")
    effects = single_feature_effects(lm, table, [3, 0, 7], multiplier=2.0)
    for feature, effect in zip((3, 0, 7), effects.tolist(), strict=True):
        assert effect == pytest.approx(measure_edits(lm, table, [FeatureEdit((feature,), 2.0)])[0].nll_delta)
    small = single_feature_effects(lm, table, range(D_SAE), multiplier=-(1 - EPSILON)) / EPSILON
    torch.testing.assert_close(small, attribution(lm, table), atol=1e-3, rtol=2e-2)
