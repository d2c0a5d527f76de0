"""Test RepSelect: its updates have no component in the removed directions, and it forgets."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mtsae_lens.data.token_tables import TokenTable, read_tokens
from mtsae_lens.errors import ConfigError
from mtsae_lens.unlearning.finetuning.batches import mixed_batches
from mtsae_lens.unlearning.finetuning.clones import clone_model
from mtsae_lens.unlearning.finetuning.finetune import DivergedError, FinetuneSettings, descend, finetune
from mtsae_lens.unlearning.finetuning.loss_interface import Step
from mtsae_lens.unlearning.finetuning.losses import NPO, mean_nll
from mtsae_lens.unlearning.finetuning.rep_select import RepSelect, remove_components
from mtsae_lens.unlearning.measures.effects import as_logits, measure_model

MATRICES = tuple(f"blocks.{layer}.mlp.{name}" for layer in (0, 1) for name in ("W_in", "W_out"))


@pytest.fixture(scope="module")
def forget(cutter: Any, sea_file: Path) -> TokenTable:
    return read_tokens(str(sea_file), "train", cutter, 12)


@pytest.fixture(scope="module")
def retain(cutter: Any, text_file: Path) -> TokenTable:
    return read_tokens(str(text_file), "train", cutter, 8)


def test_components_are_removed_on_both_sides_and_nothing_else_is() -> None:
    generator = torch.Generator().manual_seed(0)
    gradient, source = (torch.randn(6, 9, generator=generator, dtype=torch.float64) for _ in range(2))
    u, _, v = torch.linalg.svd(source)
    rotated = u.T @ gradient @ v.T  # in the basis of the singular vectors
    rotated[:2] = rotated[:, :2] = 0.0  # 2 = 0.25 * 6, rounded up
    torch.testing.assert_close(remove_components(gradient, source, 0.25), u @ rotated @ v)
    assert remove_components(source, source, 0.99).norm() > 0.01  # one component is kept
    of_itself = torch.linalg.svdvals(remove_components(source, source, 0.5))
    torch.testing.assert_close(of_itself[:3], torch.linalg.svdvals(source)[3:])


def npo_value(model: Any, clean: Any, batches: list[Any]) -> torch.Tensor:
    return NPO(retain_weight=0.0).value(Step(model, clean, batches[0]))


def retain_value(model: Any, clean: Any, batches: list[Any]) -> torch.Tensor:
    return mean_nll(model, batches[1])


@pytest.mark.parametrize(("source", "value"), [("forget", npo_value), ("retain", retain_value)])
def test_an_update_lacks_the_top_components(
    source: Any, value: Any, tiny_model: Any, cutter: Any, forget: TokenTable, retain: TokenTable
) -> None:
    """Estimated from the batches of the step, whose order the seed determines."""
    loss = RepSelect(share=0.25, source=source)
    assert set(loss.trained(tiny_model)) == set(MATRICES)
    (snapshot,) = finetune(tiny_model, loss, forget, [retain], cutter, FinetuneSettings(1e-2, 1, 4, seed=3))

    model = clone_model(tiny_model)
    batches = [next(mixed_batches([table], cutter, 4, 3 + place)) for place, table in enumerate((forget, retain))]
    weights = [parameter for name, parameter in model.named_parameters() if name in MATRICES]
    for weight in weights:
        weight.requires_grad_(True)
    sources, gradients = (torch.autograd.grad(of(model, tiny_model, batches), weights) for of in (value, npo_value))
    before, after = (dict(one.named_parameters()) for one in (tiny_model, snapshot.model))
    squares = 0.0
    for (name, _), weight, of_source, gradient in zip(
        ((n, p) for n, p in model.named_parameters() if n in MATRICES), weights, sources, gradients, strict=True
    ):
        update = (after[name] - before[name]).double()
        squares += float(update.pow(2).sum())
        u, _, v = torch.linalg.svd(of_source.double(), full_matrices=False)
        n_removed = math.ceil(0.25 * min(weight.shape))
        assert (u[:, :n_removed].T @ update).norm() < 1e-3 * update.norm()
        assert (update @ v[:n_removed].T).norm() < 1e-3 * update.norm()
        assert (update * gradient).sum() < 0  # downhill
    n_entries = sum(weight.numel() for weight in weights)
    assert math.sqrt(squares / n_entries) == pytest.approx(1e-2, rel=1e-3)


def test_it_forgets_and_more_with_every_snapshot(tiny_model: Any, cutter: Any, forget: TokenTable, retain: TokenTable) -> None:
    settings = FinetuneSettings(1e-2, 12, 4, snapshots=(4, 12))
    for source in ("forget", "retain"):
        models = [s.model for s in finetune(tiny_model, RepSelect(source=source), forget, [retain], cutter, settings)]
        deltas = [measure_model(as_logits(model), tiny_model, cutter, forget).nll_delta for model in models]
        assert 0.01 < deltas[0] < deltas[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 0.0}, "expected share between 0 and 1, got 0.0"),
        ({"share": 1.0}, "expected share between 0 and 1, got 1.0"),
        ({"source": "near"}, "expected source forget or retain, got 'near'"),
        ({"beta": 0.0}, "expected beta greater than 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RepSelect(**settings)


def test_gradients_that_are_not_finite_end_as_divergence(tiny_model: Any) -> None:
    name = "blocks.0.mlp.W_in"
    weight = dict(tiny_model.named_parameters())[name]

    def loss() -> torch.Tensor:
        return weight.mul(float("nan")).sum()

    steps = descend(tiny_model, [name], loss, 1e-3, 1, lambda _: pytest.fail("gradients that are not finite were changed"))
    with pytest.raises(DivergedError, match="expected a finite gradient"):
        list(steps)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-3])
def test_gradients_of_any_size_are_followed_or_change_nothing(size: float) -> None:
    """NPO saturates once a text is forgotten. Its gradient then underflows to zero, which must not turn the weights into NaN."""
    layer = torch.nn.Linear(9, 4, bias=False)
    before, direction = layer.weight.detach().clone(), torch.linspace(-1.0, 2.0, 36).view(4, 9)
    for _ in descend(layer, ["weight"], lambda: (layer.weight * direction).sum() * size, 0.1, 2, lambda gradients: gradients):
        pass
    step = direction / direction.square().mean().sqrt() if size else 0 * direction
    torch.testing.assert_close(layer.weight.detach(), before - 2 * 0.1 * step)
