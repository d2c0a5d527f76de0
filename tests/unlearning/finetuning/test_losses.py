"""Test each loss against its formula, token by token, and that it uses counted tokens only."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mtsae_lens.data.token_tables import read_tokens
from mtsae_lens.errors import ConfigError
from mtsae_lens.unlearning.finetuning import losses
from mtsae_lens.unlearning.finetuning.batches import Batch
from mtsae_lens.unlearning.finetuning.clones import clone_model
from mtsae_lens.unlearning.finetuning.loss_interface import Step
from mtsae_lens.unlearning.finetuning.losses import NPO, GradientAscent, GradientDifference, SimNPO
from mtsae_lens.unlearning.finetuning.rep_select import RepSelect
from mtsae_lens.unlearning.finetuning.rmu import RMU
from mtsae_lens.unlearning.finetuning.sweeps import LOSSES


def batch_of(cutter: Any, path: Path, seed: int) -> Batch:
    """Three contexts; of the second the first half does not count, of the third one token does."""
    table = read_tokens(str(path), "train", cutter, 3, seed=seed)
    counted = table.counted(cutter).clone()
    counted[1, :15] = False
    counted[2] = False
    counted[2, 9] = True
    return Batch(table.tokens, counted)


@pytest.fixture(scope="module")
def forget(cutter: Any, sea_file: Path) -> Batch:
    return batch_of(cutter, sea_file, 0)


@pytest.fixture(scope="module")
def retain(cutter: Any, text_file: Path) -> Batch:
    return batch_of(cutter, text_file, 1)


@pytest.fixture(scope="module")
def changed(tiny_model: Any) -> Any:
    """The tiny model with other weights, so that no ratio to the clean model is one."""
    model = clone_model(tiny_model)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model


@torch.no_grad()
def naive_nll(model: Any, batch: Batch) -> list[list[float]]:
    """Of each context, the loss of each counted token."""
    result = []
    for tokens, counted in zip(batch.tokens, batch.counted, strict=True):
        log_probs = model(tokens[None], prepend_bos=False)[0].log_softmax(-1)
        result.append([-log_probs[t, tokens[t + 1]].item() for t in range(len(tokens) - 1) if counted[t]])
    return result


def mean(values: list[list[float]]) -> float:
    flat = [value for row in values for value in row]
    return sum(flat) / len(flat)


def naive_npo(model: Any, clean: Any, forget: Batch, beta: float) -> float:
    terms = []
    for now, before in zip(naive_nll(model, forget), naive_nll(clean, forget), strict=True):
        log_ratio = sum(before) - sum(now)  # log p - log p_clean
        terms.append(-2 / beta * math.log(1 / (1 + math.exp(beta * log_ratio))))
    return sum(terms) / len(terms)


def naive_simnpo(model: Any, forget: Batch, beta: float, gamma: float) -> float:
    rows = [sum(row) / len(row) for row in naive_nll(model, forget)]
    return sum(-2 / beta * math.log(1 / (1 + math.exp(-(beta * row - gamma)))) for row in rows) / len(rows)


@torch.no_grad()
def naive_rmu(model: Any, clean: Any, forget: Batch, retain: Batch, loss: RMU) -> float:
    def acts(which: Any, batch: Batch) -> torch.Tensor:
        _, cache = which.run_with_cache(batch.tokens, prepend_bos=False)
        h = cache[f"blocks.{loss.layer}.hook_resid_post"]
        return torch.stack([h[i, t] for i in range(len(h)) for t in range(1, batch.counted.shape[1]) if batch.counted[i, t]])

    u = torch.rand(32, generator=torch.Generator().manual_seed(loss.seed))
    target = loss.steering * acts(clean, forget).norm(dim=1).mean() * u / u.norm()
    away = ((acts(model, forget) - target) ** 2).mean()
    return (away + loss.retain_weight * ((acts(model, retain) - acts(clean, retain)) ** 2).mean()).item()


def test_each_loss_is_its_formula(tiny_model: Any, changed: Any, forget: Batch, retain: Batch) -> None:
    nll_f, nll_r = mean(naive_nll(changed, forget)), mean(naive_nll(changed, retain))
    rmu = RMU(steering=1.5, retain_weight=3.0, layer=0)
    expected = [
        (GradientAscent(), -nll_f),
        (losses.Amnesiac(), nll_f),
        (GradientDifference(retain_weight=2.0), -nll_f + 2 * nll_r),
        (NPO(beta=0.1, retain_weight=0.0), naive_npo(changed, tiny_model, forget, 0.1)),
        (NPO(beta=0.5, retain_weight=3.0), naive_npo(changed, tiny_model, forget, 0.5) + 3 * nll_r),
        (SimNPO(beta=0.5, gamma=1.0), naive_simnpo(changed, forget, 0.5, 1.0) + nll_r),
        (RepSelect(beta=0.3), naive_npo(changed, tiny_model, forget, 0.3)),
        (rmu, naive_rmu(changed, tiny_model, forget, retain, rmu)),
    ]
    assert {type(loss) for loss, _ in expected} == {type(make()) for make in LOSSES.values()}
    values = [loss.value(Step(changed, tiny_model, forget, retain)).item() for loss, _ in expected]
    assert values == pytest.approx([value for _, value in expected], rel=1e-4)
    assert len({round(value, 3) for value in values}) == len(values)


@pytest.mark.parametrize("name", LOSSES)
def test_tokens_that_do_not_count_do_not_matter(name: str, tiny_model: Any, changed: Any, forget: Batch, retain: Batch) -> None:
    """No loss depends on tokens after the last counted one; every loss depends on that token and on the tokens that predict it."""
    loss = SimNPO(beta=0.1) if name == "simnpo" else LOSSES[name]()  # with its own beta it is flat in so bad a model
    before = loss.value(Step(changed, tiny_model, forget, retain))
    for last, same in ((11, True), (9, False)):
        tokens = forget.tokens.clone()
        tokens[2, last:] = torch.arange(100, 100 + 32 - last)
        after = loss.value(Step(changed, tiny_model, dataclasses.replace(forget, tokens=tokens), retain))
        assert torch.isclose(before, after, rtol=1e-6) == same


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_says_rightly_whether_it_uses_retain_text(
    name: str, tiny_model: Any, changed: Any, forget: Batch, retain: Batch
) -> None:
    loss = LOSSES[name]()
    if loss.uses_retain:
        other = dataclasses.replace(retain, tokens=retain.tokens.flip(0), counted=retain.counted.flip(0))
        other = dataclasses.replace(other, tokens=other.tokens.roll(1, dims=1))
        values = [loss.value(Step(changed, tiny_model, forget, batch)).item() for batch in (retain, other)]
        assert values[0] != pytest.approx(values[1], rel=1e-5)
        with pytest.raises(ConfigError, match="expected retain text"):
            loss.value(Step(changed, tiny_model, forget, None))
    else:
        assert loss.value(Step(changed, tiny_model, forget, None)).isfinite()


def test_npo_begins_as_gradient_ascent_and_fades(tiny_model: Any, forget: Batch) -> None:
    """Its gradient is that of ascent, by context, weighed by `2 p^beta / (p^beta + p_clean^beta)`: 1 at the clean model, less later."""
    model = clone_model(tiny_model)
    weights = [block.mlp.W_in for block in model.blocks]
    for weight in weights:
        weight.requires_grad_(True)
    npo = torch.autograd.grad(NPO(retain_weight=0.0).value(Step(model, tiny_model, forget, None)), weights)
    ascent = torch.autograd.grad(-losses.context_nll(model, forget).mean(), weights)
    for one, other in zip(npo, ascent, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    start = NPO(retain_weight=0.0).value(Step(model, tiny_model, forget))
    assert start.item() == pytest.approx(20 * math.log(2), rel=1e-5)


def test_rmu_moves_a_few_layers_only(tiny_model: Any) -> None:
    assert RMU().layer_in(tiny_model) == 1
    assert {name.split(".")[1] for name in RMU(layer=1).trained(tiny_model)} == {"0", "1"}
    assert {name.split(".")[1] for name in RMU(layer=1, n_layers=1).trained(tiny_model)} == {"1"}
    assert {name.split(".")[1] for name in RMU(layer=0).trained(tiny_model)} == {"0"}
    assert all(name.startswith("blocks.") for name in RMU().trained(tiny_model))
    assert len(GradientAscent().trained(tiny_model)) == len(list(tiny_model.parameters()))
    with pytest.raises(ConfigError, match="from 0 to 1"):
        RMU(layer=2).trained(tiny_model)


@pytest.mark.parametrize("make", [NPO, SimNPO])
def test_beta_must_be_positive(make: Any) -> None:
    with pytest.raises(ConfigError, match="beta greater than 0"):
        make(beta=0.0)
