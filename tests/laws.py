"""Laws that every MTSAE obeys: each `check_*` raises AssertionError if an SAE violates one. `h` is `(batch, pos, d_in)`, without walls."""

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
from mtsae_lens.data.blocks import SequenceBlocks
from mtsae_lens.data.masks import zero_rows
from mtsae_lens.sae.collapse import firing_counts
from mtsae_lens.sae.separation import Scales
from mtsae_lens.sae.temporal import temporal_convolution


def other(h: Tensor) -> Tensor:
    """Return activations unrelated to `h`, with walls at the same positions."""
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
    """An SAE is loaded from disk unchanged, and an SAE in training also as its inference SAE."""
    trips: list[tuple[Any, Any, type]] = [(sae.save_model, SAE.load_from_disk, MTSAE)]
    if isinstance(sae, TrainingSAE):
        trips = [
            (sae.save_model, TrainingSAE.load_from_disk, MTTrainingSAE),
            (sae.save_inference_model, SAE.load_from_disk, MTSAE),
        ]
    for number, (save, load, kind) in enumerate(trips):
        save(folder / str(number))
        names, feature_acts, changed = {name for name, _ in sae.named_parameters()}, sae.encode(h), {"metadata": None}
        if sae.cfg.activation == "batchtopk":
            names |= {"topk_threshold"} if kind is MTTrainingSAE else {"threshold"}
            if kind is MTSAE:  # a fixed threshold takes the place of the choice among the batch
                changed |= {"activation": "jumprelu"}
                pre = hidden_pre(sae, h)
                feature_acts = pre * (pre > sae.topk_threshold) * (sae.process_sae_in(h) != 0).any(dim=-1, keepdim=True)
        assert set(load_file(folder / str(number) / SAE_WEIGHTS_FILENAME)) == names
        loaded = load(folder / str(number))
        assert type(loaded) is kind
        for field in dataclasses.fields(loaded.cfg):
            if field.name != "metadata":
                expected = changed.get(field.name, getattr(sae.cfg, field.name))
                assert getattr(loaded.cfg, field.name) == expected, field.name
        # an SAE in training lays its encoder out by columns, so its products round differently
        rounding = {"rtol": 1e-10, "atol": 1e-10} if kind is not type(sae) else {"rtol": 0.0, "atol": 0.0}
        assert_close(loaded.encode(h), feature_acts, **rounding)
        assert_close(loaded(h), sae.decode(feature_acts), **rounding)


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
    walls = (h == 0).all(dim=-1)
    kept = (~walls).flatten().nonzero().squeeze(-1)
    rows = kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))]
    whole = train_step(sae, h.flatten(0, 1))
    mixed = train_step(sae, gather(h, walls, sae.read_offsets, sae.cfg.padding)(rows))
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
            batch, {"l1": 0.1, "l0": 0.1, "separation": 0.1}, dead_neuron_mask=dead, n_training_steps=0, is_logging_step=False
        )
    )


def check_gradients(sae: Any, h: Tensor) -> None:
    """The loss has a finite gradient for every parameter, every tap and every input of the encoder, with and without walls."""
    h = h.clone()
    h[:, h.shape[1] // 2] = 0
    sae.zero_grad()
    if isinstance(sae, TrainingSAE):
        train_step(sae, h.flatten(0, 1)).loss.backward()
    else:
        (sae(h) - h).pow(2).sum().backward()
    for name, parameter in sae.named_parameters():
        if name == "threshold" and not isinstance(sae, TrainingSAE):  # a step has no gradient; training estimates one
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        moved = parameter.grad != 0
        if name == "log2_dilations":
            assert moved.tolist() == [dilation > 0 for dilation in sae.cfg.dilations]
        else:
            assert moved.any(dim=-1).all() if name in ("taps", "W_enc", "W_context") else moved.any(), name


@torch.no_grad()
def check_walls(sae: Any, h: Tensor) -> None:
    """Features are zero at a wall, and positions on one side of it do not affect the other side. On a circle this takes two walls."""
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


def allowed(sae: Any) -> Tensor:
    """Which encoder weights a nested SAE may use: those of features in group g for scales 0 to g."""
    n_scales, d_sae = len(sae.cfg.dilations), sae.cfg.d_sae
    groups = [group for group, part in enumerate(torch.arange(d_sae).tensor_split(n_scales)) for _ in part]
    rows = [[scale <= group for group in groups] for scale in range(n_scales)]
    return torch.tensor(rows).repeat_interleave(sae.cfg.d_in, dim=0)


def hidden_pre(sae: Any, h: Tensor) -> Tensor:
    """Pre-activations."""
    return sae.run_with_cache(h, names_filter=["hook_sae_acts_pre"])[1]["hook_sae_acts_pre"]


@torch.no_grad()
def check_contributions(contributions: Callable[..., Tensor], sae: Any, h: Tensor) -> None:
    """Contributions of scales, or of offsets, and `b_enc` sum to the pre-activation, also at and near walls."""
    features = torch.tensor([0, 5, sae.cfg.d_sae - 1])
    h = h.clone()
    h[:, h.shape[1] // 2] = 0
    total = contributions(sae, h, features).sum(dim=2) + sae.b_enc[features]
    assert_close(total, hidden_pre(sae, h)[..., features], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def check_contributions_are_of_their_scale(contributions: Callable[..., Tensor], sae: Any, h: Tensor) -> None:
    """Without the encoder weights of a scale its contribution is gone, and the others are as they were."""
    features = torch.arange(sae.cfg.d_sae)
    before = contributions(sae, h, features)
    assert before.shape == (*h.shape[:2], len(sae.cfg.dilations), sae.cfg.d_sae)
    for scale in range(len(sae.cfg.dilations)):
        without = copy.deepcopy(sae)
        if sae.cfg.context_rank is not None and scale:
            without.W_context.data[(scale - 1) * sae.cfg.d_in : scale * sae.cfg.d_in] = 0
        else:
            without.W_enc.data[scale * sae.cfg.d_in : (scale + 1) * sae.cfg.d_in] = 0
        after = contributions(without, h, features)
        others = [other for other in range(len(sae.cfg.dilations)) if other != scale]
        assert before[:, :, scale].any()
        assert not after[:, :, scale].any()
        assert_close(after[:, :, others], before[:, :, others])


@torch.no_grad()
def check_contributions_are_of_their_offset(contributions: Callable[..., Tensor], sae: Any, h: Tensor) -> None:
    """Without a norm, changing a position changes exactly the contributions of the offsets that read it."""
    features = torch.arange(sae.cfg.d_sae)
    n, source = h.shape[1], h.shape[1] // 2
    changed = h.clone()
    changed[:, source] = other(changed[:, source])
    differ = (contributions(sae, h, features) != contributions(sae, changed, features)).any(dim=-1)
    assert differ.shape[2] == len(sae.read_offsets)
    for place, offset in enumerate(sae.read_offsets):
        position = (source - offset) % n if sae.cfg.padding == "circular" else source - offset
        assert torch.equal(differ[:, :, place], (torch.arange(n) == position).expand(len(h), n))


@torch.no_grad()
def check_groups_read_no_longer_scale(sae: Any, h: Tensor) -> None:
    """A position that only the scales from k on can read reaches the features of the groups from k on, and no others."""
    n, n_scales = h.shape[1], len(sae.cfg.dilations)
    groups = torch.tensor(
        [group for group, part in enumerate(torch.arange(sae.cfg.d_sae).tensor_split(n_scales)) for _ in part]
    )
    before = hidden_pre(sae, h)
    found = set()
    for place, offset in enumerate(sae.read_offsets):
        first = int(sae.filters[:, place].any(dim=-1).nonzero()[0])  # the first scale that reads this offset
        position = n // 2
        changed = h.clone()
        changed[:, position + offset] = other(changed[:, position + offset])
        differs = before[:, position] != hidden_pre(sae, changed)[:, position]
        assert torch.equal(differs, (groups >= first).expand_as(differs))
        found.add(first)
    assert found != {0}


def check_barred_weights_stay_zero(sae: Any, h: Tensor) -> None:
    """Encoder weights behind the mask of a nested SAE are exactly zero, and AdamW with weight decay leaves them so."""
    free = allowed(sae)
    start = sae.W_enc.detach().clone()
    optimizer = torch.optim.AdamW(sae.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(5):
        assert not sae.W_enc[~free].any()
        optimizer.zero_grad()
        train_step(sae, h.flatten(0, 1)).loss.backward()
        optimizer.step()
    assert not sae.W_enc[~free].any()
    assert (sae.W_enc != start)[free].float().mean() > 0.5


@torch.no_grad()
def check_narrow_taps_are_the_fixed_ones(sae: Any, h: Tensor) -> None:
    """With its rates on the grid and taps that read one lag each, an SAE of learned dilations is the one of fixed ones."""
    rates = torch.tensor([max(dilation, 1) for dilation in sae.cfg.dilations], dtype=sae.dtype)
    sae.log2_dilations.copy_(rates.log2())
    fixed = type(sae)(dataclasses.replace(sae.cfg, learn_dilations=False, max_lag=None))
    fixed.load_state_dict({name: value for name, value in sae.state_dict().items() if name != "log2_dilations"})
    assert_close(torch.tensor(sae.dilations), torch.tensor(fixed.dilations))
    assert_close(sae.encode(h), fixed.encode(h))
    assert_close(sae(h), fixed(h))


@torch.no_grad()
def check_a_still_scale_reads_the_token_alone(sae: Any, h: Tensor) -> None:
    """A scale of dilation 0 reads no other position, for any learned rate; the other scales do."""
    source = h.shape[1] // 2
    changed = h.clone()
    changed[:, source] = other(changed[:, source])
    sae.log2_dilations.fill_(1.0)
    walls = torch.zeros(h.shape[:2], dtype=torch.bool)
    differ = (sae.encode_scales(h, walls) != sae.encode_scales(changed, walls)).any(dim=-1).any(dim=0)
    for scale, dilation in enumerate(sae.cfg.dilations):
        positions = differ[:, scale].nonzero().squeeze(-1).tolist()
        assert positions == [source] if dilation == 0 else len(positions) > 2
    assert [rate == 0 for rate in sae.dilations] == [dilation == 0 for dilation in sae.cfg.dilations]


def check_a_rate_moves_to_where_the_target_lies(filters: Callable[..., Tensor], start: float, lag: int) -> None:
    """Trained to predict what lay `lag` positions back, a scale of two taps brings its rate there, or most of the way."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 64, 4, generator=generator, dtype=torch.float64)
    lags = [1, 2, 3, 4, 6, 8, 11, 16]
    reads = {-far: x[:, 16 - far : 64 - far] for far in (0, *lags)}
    taps = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(4, 1).T[None].clone().requires_grad_()
    log2_dilations = torch.tensor([start], dtype=torch.float64).log2().requires_grad_()
    optimizer = torch.optim.Adam([taps, log2_dilations], lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        found = temporal_convolution(reads, filters(taps, log2_dilations, lags, torch.ones(1, dtype=torch.bool)), [list(reads)])
        (found[:, :, 0] - reads[-lag]).pow(2).mean().backward()
        optimizer.step()
    assert abs(2 ** log2_dilations.item() - lag) < 0.2 * abs(start - lag)


# separation losses ----------------------------------------------------------------------------------------------------


def random_scales(n_scales: int = 3) -> Scales:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(40, n_scales, 4, generator=generator, dtype=torch.float64) + 0.7
    return Scales(z, torch.randn(n_scales, 5, 4, generator=generator, dtype=torch.float64))


def check_separation_is_zero_to_one(loss: Callable[[Scales], Tensor]) -> None:
    """The loss is 0 for scales that share nothing, 1 for equal scales, and between 0 and 1 otherwise."""
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64)
    columns = torch.cartesian_prod(signs, signs, signs)  # orthogonal, and of mean zero
    z = 3 * torch.diag_embed(columns)  # scale k lives in dimension k alone
    for factor in (1.0, 10.0):
        assert abs(loss(Scales(factor * z, factor * torch.eye(3, dtype=z.dtype)[..., None].repeat(1, 1, 3)))) < 1e-9
    scales = random_scales()
    same = Scales(scales.z[:, :1].repeat(1, 3, 1), scales.filters[:1].repeat(3, 1, 1))
    assert_close(loss(same), torch.ones((), dtype=torch.float64), atol=1e-6, rtol=0)
    assert 0.001 < loss(scales) < 0.999


def check_separation_falls_along_its_gradient(loss: Callable[[Scales], Tensor]) -> None:
    """A small step down the gradient of what the loss looks at lowers it."""
    scales = random_scales()
    z, filters = scales.z.requires_grad_(), scales.filters.requires_grad_()
    before = loss(Scales(z, filters))
    before.backward()
    z, filters = (x if x.grad is None else x - 0.1 * x.grad for x in (z, filters))
    assert loss(Scales(z, filters)) < before - 1e-7


def check_separation_invariances(loss: Callable[[Scales], Tensor], name: str) -> None:
    """Each loss is invariant to what it should ignore, and not invariant to the rest."""
    scales = random_scales()
    generator = torch.Generator().manual_seed(1)

    def positive(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5

    mix = torch.linalg.qr(torch.randn(3, 4, 4, generator=generator, dtype=torch.float64)).Q
    shift = positive(1, 3, 4)
    changes = {
        "rows rescaled": Scales(scales.z * positive(40, 3, 1), scales.filters),
        "dimensions rescaled": Scales(scales.z * positive(1, 3, 4), scales.filters),
        "scales rescaled": Scales(scales.z * positive(1, 3, 1), scales.filters),
        "scales shifted": Scales(scales.z + shift, scales.filters),
        "dimensions mixed": Scales(torch.einsum("rkd,kde->rke", scales.z, mix), scales.filters),
        "filters rescaled": Scales(scales.z, scales.filters * positive(3, 1, 4)),
        "filters changed": Scales(scales.z, scales.filters * positive(3, 5, 4)),
    }
    unseen = {
        "cosine": {"rows rescaled", "scales rescaled", "filters rescaled", "filters changed"},
        "decorrelation": {
            "dimensions rescaled",
            "scales rescaled",
            "scales shifted",
            "filters rescaled",
            "filters changed",
        },
        "cka": {"scales rescaled", "scales shifted", "dimensions mixed", "filters rescaled", "filters changed"},
        "taps": set(changes) - {"filters changed"},
    }
    found = {change for change, changed in changes.items() if abs(loss(changed) - loss(scales)) < 1e-6}
    assert found == unseen[name]


# training -------------------------------------------------------------------------------------------------------------


def check_outlier_dimensions_cost_nothing(
    train: Callable[[SequenceBlocks], TrainingSAE[Any]], plain: SequenceBlocks, outliers: SequenceBlocks
) -> None:
    """An SAE trained on a stream with outlier dimensions uses its features, and explains as much as one trained without them."""
    explained = {}
    for name, stream in (("plain", plain), ("outliers", outliers)):
        sae = train(stream)
        block = next(stream.blocks(1000))
        h, kept = zero_rows(block.h, block.masked), ~block.masked.flatten()
        with torch.no_grad():
            feature_acts = sae.encode(h if isinstance(sae, MTTrainingSAE) else h.flatten(0, 1)).flatten(0, -2)
            found = sae.decode(feature_acts)
        rows, error = h.flatten(0, 1)[kept], (h.flatten(0, 1) - found)[kept].pow(2).sum()
        explained[name] = 1 - error / (rows - rows.mean(dim=0)).pow(2).sum()
        counts = firing_counts((feature_acts[kept] != 0).float().mean(dim=0))
        assert counts.n_silent <= 0.05 * counts.n_features, f"{name}: {counts}"
    assert explained["outliers"] >= explained["plain"] - 0.02, explained
