"""Laws that every MTSAE obeys: each `check_*` raises AssertionError where an SAE breaks one. `h` is `(batch, pos, d_in)`, no walls."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.constants import SAE_WEIGHTS_FILENAME
from sae_lens.saes.sae import TrainingSAE, TrainStepInput, TrainStepOutput
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from mtsae_lens import MTSAE, MTTrainingSAE


def other(h: Tensor) -> Tensor:
    """Activations that have nothing in common with `h`, walls where it has them."""
    return -2 * h.flip(-1)


@torch.no_grad()
def check_causality(encode: Callable[[Tensor], Tensor], h: Tensor) -> None:
    """Activations after t do not reach the features at or before t."""
    before = encode(h)
    for t in (1, h.shape[1] // 2, h.shape[1] - 2):
        changed = h.clone()
        changed[:, t + 1 :] = other(changed[:, t + 1 :])
        after = encode(changed)
        assert not torch.equal(before[:, t + 1 :], after[:, t + 1 :])
        assert torch.equal(before[:, : t + 1], after[:, : t + 1])


@torch.no_grad()
def check_receptive_field(sae: Any, h: Tensor) -> None:
    """A position reaches the features within `receptive_field`, its two ends included, and no others."""
    before, after = sae.receptive_field
    source = h.shape[1] // 2
    changed = h.clone()
    changed[:, source] = other(changed[:, source])
    reached = (sae.encode(h) != sae.encode(changed)).any(dim=-1)
    distance = torch.arange(h.shape[1]) - source
    assert not reached[:, (distance > before) | (distance < -after)].any()
    assert reached[:, (distance == before) | (distance == -after)].all()


@torch.no_grad()
def check_circular_equivariance(encode: Callable[[Tensor], Tensor], h: Tensor) -> None:
    """Rolling the context rolls the features."""
    for shift in (1, h.shape[1] // 3):
        assert_close(encode(h.roll(shift, dims=1)), encode(h).roll(shift, dims=1))


@torch.no_grad()
def check_forward_is_decode_of_encode(sae: Any, h: Tensor) -> None:
    """What `forward` returns is what the splice and `run_evals` compute."""
    for given in (h, h.flatten(0, 1)):
        assert torch.equal(sae(given), sae.decode(sae.encode(given)))


@torch.no_grad()
def check_save_load(sae: Any, h: Tensor, folder: Path) -> None:
    """An SAE comes back from disk as it was, an SAE in training also as the inference SAE that it is to become."""
    trips: list[tuple[Any, Any, type]] = [(sae.save_model, SAE.load_from_disk, MTSAE)]
    if isinstance(sae, TrainingSAE):
        trips = [
            (sae.save_model, TrainingSAE.load_from_disk, MTTrainingSAE),
            (sae.save_inference_model, SAE.load_from_disk, MTSAE),
        ]
    for number, (save, load, kind) in enumerate(trips):
        save(folder / str(number))
        assert set(load_file(folder / str(number) / SAE_WEIGHTS_FILENAME)) == {name for name, _ in sae.named_parameters()}
        loaded = load(folder / str(number))
        assert type(loaded) is kind
        for field in dataclasses.fields(loaded.cfg):
            if field.name != "metadata":
                assert getattr(loaded.cfg, field.name) == getattr(sae.cfg, field.name), field.name
        assert torch.equal(loaded.encode(h), sae.encode(h))
        assert torch.equal(loaded(h), sae(h))


@torch.no_grad()
def check_batch_splitting(sae: Any, h: Tensor) -> None:
    """A context's features depend on no other context, and rows laid end to end are the same contexts."""
    whole = sae.encode(h)
    assert_close(torch.cat([sae.encode(one) for one in h.split(1)]), whole)
    assert_close(sae.encode(h.flatten(0, 1)), whole.flatten(0, 1))
    assert_close(sae(h.flatten(0, 1)), sae(h).flatten(0, 1))


@torch.no_grad()
def check_scale_folding(sae: Any, h: Tensor, factor: float) -> None:
    """A folded SAE does to activations what the SAE does to scaled ones."""
    folded = copy.deepcopy(sae)
    folded.fold_activation_norm_scaling_factor(factor)
    feature_acts = sae.encode(factor * h)
    assert_close(folded.encode(h), feature_acts)
    assert_close(folded.decode(feature_acts), sae.decode(feature_acts) / factor)
    assert folded.cfg.normalize_activations == "none"


def check_mixed_rows(sae: Any, h: Tensor, gather: Callable[..., Callable[[Tensor], Tensor]]) -> None:
    """Rows that bring along what they read, in any order, train as the whole contexts do."""
    h = h.clone()
    h[:, [0 if sae.cfg.skip_first_position else 3, h.shape[1] // 2]] = 0
    kept = (h != 0).any(dim=-1).flatten().nonzero().squeeze(-1)
    rows = kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))]
    whole = train_step(sae, h.flatten(0, 1))
    mixed = train_step(sae, gather(h, sae.read_offsets, sae.cfg.padding)(rows))
    assert torch.equal(mixed.sae_in, h.flatten(0, 1)[rows])
    assert_close(mixed.feature_acts, whole.feature_acts[rows])
    assert_close(mixed.sae_out, whole.sae_out[rows])
    assert len(whole.losses) == 3
    assert_close(mixed.losses, whole.losses)


def train_step(sae: Any, batch: Tensor) -> TrainStepOutput:
    """The forward pass of training, with every loss that the SAE knows."""
    dead = torch.arange(sae.cfg.d_sae) < 3
    return sae.training_forward_pass(
        step_input=TrainStepInput(
            batch, {"l1": 0.1, "separation": 0.1}, dead_neuron_mask=dead, n_training_steps=0, is_logging_step=False
        )
    )


def check_gradients(sae: Any, h: Tensor) -> None:
    """The loss moves every parameter, every tap and every input of the encoder among them, by a finite amount; walls or none."""
    h = h.clone()
    h[:, h.shape[1] // 2] = 0
    sae.zero_grad()
    if isinstance(sae, TrainingSAE):
        train_step(sae, h.flatten(0, 1)).loss.backward()
    else:
        (sae(h) - h).pow(2).sum().backward()
    for name, parameter in sae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        moved = parameter.grad != 0
        assert moved.any(dim=-1).all() if name in ("taps", "W_enc") else moved.any(), name


@torch.no_grad()
def check_walls(sae: Any, h: Tensor) -> None:
    """Features are zero at a wall, and what lies on one side of it does not reach the other. On a circle it takes two walls."""
    n = h.shape[1]
    position = torch.arange(n)
    for walls in ([n // 2 - 2, n // 2 + 2], [n // 2]):
        walled = h.clone()
        walled[:, walls] = 0
        before = sae.encode(walled)
        assert not before[:, walls].any()
        assert before[:, 1].any()
        if len(walls) == 1 and sae.cfg.padding == "circular":
            continue
        inside = (position > walls[0]) & (position < (walls[1] if len(walls) == 2 else n))
        for side in (inside, ~inside):
            after = sae.encode(torch.where(side[:, None], other(walled), walled))
            assert not torch.equal(before[:, side], after[:, side])
            assert torch.equal(before[:, ~side], after[:, ~side])


@torch.no_grad()
def check_scale_contributions(sae: Any, h: Tensor) -> None:
    """What the scales add to a feature's pre-activation and `b_enc` sum to it."""
    features = torch.tensor([0, 5, sae.cfg.d_sae - 1])
    _, cache = sae.run_with_cache(h, names_filter=["hook_sae_acts_pre"])
    total = sae.scale_contributions(h, features).sum(dim=2) + sae.b_enc[features]
    assert_close(total, cache["hook_sae_acts_pre"][..., features])
