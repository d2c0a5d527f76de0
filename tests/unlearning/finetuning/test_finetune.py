"""Test finetuning: the given model never changes, and a snapshot equals that of a plain training loop."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.data.token_tables import TokenTable, read_tokens
from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.unlearning.finetuning.batches import mixed_batches
from mtsae_lens.unlearning.finetuning.clones import clone_model
from mtsae_lens.unlearning.finetuning.finetune import FinetuneSettings, descend, finetune
from mtsae_lens.unlearning.finetuning.losses import Amnesiac, GradientAscent, GradientDifference, mean_nll
from mtsae_lens.unlearning.finetuning.rmu import RMU
from mtsae_lens.unlearning.finetuning.sweeps import LOSSES
from mtsae_lens.unlearning.measures.effects import as_logits, measure_model


@pytest.fixture(scope="module")
def forget(cutter: Any, sea_file: Path) -> TokenTable:
    return read_tokens(str(sea_file), "train", cutter, 12)


@pytest.fixture(scope="module")
def retain(cutter: Any, text_file: Path) -> TokenTable:
    return read_tokens(str(text_file), "train", cutter, 8)


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def moved(model: Any, start: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in model.named_parameters() if not torch.equal(value, start[name])}


@pytest.mark.parametrize("name", LOSSES)
def test_the_model_stays_and_exactly_the_trained_weights_of_the_clone_move(
    name: str, tiny_model: Any, cutter: Any, forget: TokenTable, retain: TokenTable
) -> None:
    loss, start = LOSSES[name](), weights_of(tiny_model)
    (snapshot,) = finetune(tiny_model, loss, forget, [retain], cutter, FinetuneSettings(1e-3, 2, 4, (1,)))
    assert not moved(tiny_model, start)
    assert all(p.grad is None and not p.requires_grad for m in (tiny_model, snapshot.model) for p in m.parameters())
    unread = {"blocks.1.mlp.b_out", "blocks.1.attn.b_K", "blocks.0.attn.b_K"}  # keys: softmax does not see a constant
    assert moved(snapshot.model, start) | unread == set(loss.trained(tiny_model)) | unread
    assert snapshot.step == 1


def test_snapshots_are_models_of_their_own_and_as_a_shorter_run_ends(tiny_model: Any, cutter: Any, forget: TokenTable) -> None:
    snapshots = list(finetune(tiny_model, GradientAscent(), forget, [], cutter, FinetuneSettings(1e-3, 4, 4, (0, 1, 3))))
    assert [snapshot.step for snapshot in snapshots] == [0, 1, 3]
    assert not moved(snapshots[0].model, weights_of(tiny_model))
    for snapshot in snapshots[1:]:
        (short,) = finetune(tiny_model, GradientAscent(), forget, [], cutter, FinetuneSettings(1e-3, snapshot.step, 4))
        assert not moved(snapshot.model, weights_of(short.model))
    (other,) = finetune(tiny_model, GradientAscent(), forget, [], cutter, FinetuneSettings(1e-3, 3, 4, seed=1))
    assert moved(other.model, weights_of(snapshots[2].model))


def test_training_is_a_plain_loop_of_adamw(tiny_model: Any, cutter: Any, forget: TokenTable, tiny_model_dir: Path) -> None:
    settings = FinetuneSettings(lr=2e-3, n_steps=3, batch_size=3, seed=5)
    (snapshot,) = finetune(tiny_model, GradientAscent(), forget, [], cutter, settings)
    plain = load_language_model(str(tiny_model_dir))
    for parameter in plain.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=2e-3, weight_decay=0.0)
    for batch in islice(mixed_batches([forget], cutter, 3, seed=5), 3):
        log_probs = plain(batch.tokens, prepend_bos=False).log_softmax(-1)
        picked = log_probs[:, :-1].gather(-1, batch.tokens[:, 1:, None])[..., 0]
        (picked * batch.counted).sum().div(batch.counted.sum()).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    found = as_logits(snapshot.model)(forget.tokens)
    torch.testing.assert_close(found, plain(forget.tokens, prepend_bos=False), atol=2e-2, rtol=1e-3)
    assert (found - tiny_model(forget.tokens, prepend_bos=False)).abs().max() > 0.2


def test_forgetting_forgets_and_retaining_retains(tiny_model: Any, cutter: Any, forget: TokenTable, retain: TokenTable) -> None:
    settings = FinetuneSettings(2e-3, 12, 4)
    effects = {}
    for loss in (GradientAscent(), GradientDifference(retain_weight=4.0)):
        (snapshot,) = finetune(tiny_model, loss, forget, [retain], cutter, settings)
        effects[type(loss)] = [
            measure_model(as_logits(snapshot.model), tiny_model, cutter, t).nll_delta for t in (forget, retain)
        ]
    assert effects[GradientAscent][0] > 0.5
    assert effects[GradientDifference][0] > 0.2
    assert effects[GradientDifference][1] < effects[GradientAscent][1] - 0.5


def test_amnesiac_subtracts_multiples_of_what_learning_added(tiny_model: Any, cutter: Any, forget: TokenTable) -> None:
    settings = FinetuneSettings(1e-3, 3, 4, snapshots=(1, 5))
    learned, batches = clone_model(tiny_model), mixed_batches([forget], cutter, 4, settings.seed)
    for _ in descend(learned, tuple(weights_of(learned)), lambda: mean_nll(learned, next(batches)), lr=1e-3, n_steps=3):
        pass
    start, after = weights_of(tiny_model), weights_of(learned)
    for snapshot in finetune(tiny_model, Amnesiac(), forget, [], cutter, settings):
        for name, value in snapshot.model.named_parameters():
            torch.testing.assert_close(value, start[name] - snapshot.step * (after[name] - start[name]))
    (once,) = finetune(tiny_model, Amnesiac(), forget, [], cutter, FinetuneSettings(1e-3, 3, 4))
    assert once.step == 1
    deltas = [measure_model(as_logits(m), tiny_model, cutter, forget).nll_delta for m in (learned, once.model)]
    assert deltas[0] < 0 < deltas[1]


def test_what_cannot_be_done_is_refused_at_once(tiny_model: Any, cutter: Any, forget: TokenTable) -> None:
    for changes in ({"lr": 0.0}, {"n_steps": 0}, {"batch_size": 0}, {"snapshots": (3, 1)}, {"snapshots": (-1,)}):
        with pytest.raises(ConfigError):
            FinetuneSettings(**({"lr": 1e-3, "n_steps": 5} | changes))
    with pytest.raises(ConfigError, match="at most n_steps=2"):
        finetune(tiny_model, GradientAscent(), forget, [], cutter, FinetuneSettings(1e-3, 2, snapshots=(3,)))
    with pytest.raises(DataError, match="expected retain text"):
        finetune(tiny_model, RMU(), forget, [], cutter, FinetuneSettings(1e-3, 2))


def test_a_loss_that_is_no_number_stops_the_run(tiny_model: Any) -> None:
    model = clone_model(tiny_model)
    steps = descend(model, ["embed.W_E"], lambda: model.embed.W_E.sum() * float("nan"), 1e-3, 2)
    assert next(steps) == 0
    with pytest.raises(ConfigError, match=r"NaN or infinity at step 1 with lr=0\.001"):
        next(steps)
    assert not model.embed.W_E.requires_grad


def test_gradients_are_clipped(tiny_model: Any) -> None:
    """Steep losses of any slope then make the same update; AdamW would remember the steepest."""
    model = clone_model(tiny_model)
    slopes = iter([1e6, 1e4, 1e5])
    steps = descend(model, ["unembed.b_U"], lambda: next(slopes) * model.unembed.b_U.sum(), 0.01, 3)
    start = model.unembed.b_U.clone()
    for step in steps:
        torch.testing.assert_close(model.unembed.b_U, start - 0.01 * step, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("first_layer", [0, 1])
def test_layers_before_the_first_one_keep_their_weights(
    first_layer: int, tiny_model: Any, cutter: Any, forget: TokenTable
) -> None:
    settings = FinetuneSettings(1e-3, 2, 4, first_layer=first_layer)
    (snapshot,) = finetune(tiny_model, GradientAscent(), forget, [], cutter, settings)
    changed = moved(snapshot.model, weights_of(tiny_model))
    early = {name for name in changed if name.startswith(("blocks.0.", "embed.", "pos_embed."))}
    assert bool(early) == (first_layer == 0)
    assert {"blocks.1.mlp.W_in", "unembed.W_U"} <= changed


@pytest.mark.parametrize(
    ("loss", "first_layer", "message"),
    [
        (GradientAscent(), -1, "expected first_layer >= 0, got -1"),
        (GradientAscent(), 2, "expected first_layer from 0 to 1 for this model, got 2"),
        (RMU(layer=0), 1, "expected parameters to train from layer 1 on, got none"),
    ],
)
def test_a_first_layer_that_leaves_nothing_is_refused(
    loss: Any, first_layer: int, message: str, tiny_model: Any, cutter: Any, forget: TokenTable, retain: TokenTable
) -> None:
    with pytest.raises(ConfigError, match=message):
        list(finetune(tiny_model, loss, forget, [retain], cutter, FinetuneSettings(1e-3, 1, 4, first_layer=first_layer)))
