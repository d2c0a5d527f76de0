"""Test edits on cases worked out by hand, the identity of an empty edit, and that masked positions are never edited."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig
from torch import Tensor

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.errors import ConfigError
from mtsae_lens.splice.direction_edits import DirectionEdit, orthonormal_rows
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.splice.edits import FeatureClamp, FeatureEdit
from mtsae_lens.splice.error_edits import CombinedEdit, ErrorEdit
from mtsae_lens.splice.gates import AlwaysOpen, FeatureActiveGate, RunningEvidenceGate, SequenceRateGate
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.sae_state import SAEState
from mtsae_lens.splice.splicing import Splice, open_positions

ACTS = torch.tensor([[[0.0, 2.0, 3.0], [0.0, 0.0, 5.0], [1.0, 0.0, 0.0]]])


def random_splice(d_in: int = 8, hook_name: str = "blocks.0.hook_resid_post") -> Splice:
    sae = MTSAE(MTSAEConfig(d_in=d_in, d_sae=2 * d_in, k=6, context_size=12))
    generator = torch.Generator().manual_seed(0)
    for parameter in sae.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    sae.cfg.metadata.hook_name = hook_name
    return Splice(sae)


def activations(n_positions: int = 12, d_in: int = 8) -> Tensor:
    return torch.randn(3, n_positions, d_in, generator=torch.Generator().manual_seed(1))


def directions(d_in: int, n: int = 2, seed: int = 2) -> Tensor:
    return orthonormal_rows(torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed)))


def strong_edits(d_in: int, d_sae: int) -> dict[str, Edit]:
    """One of each kind, each of which changes every position that it may."""
    center = torch.full((d_in,), 3.0)
    features = tuple(range(d_sae))
    return {
        "features": FeatureEdit(features, 2.0),
        "fires": FeatureClamp(features, (-4.0,) * len(features), "fires"),
        "any_fires": FeatureClamp(features, (-4.0,) * len(features), "any_fires"),
        "everywhere": FeatureClamp((0, 1), (7.0, -7.0), "everywhere"),
        "directions": DirectionEdit(directions(d_in), center, 1.0),
        "error": ErrorEdit(directions(d_in), center, 1.0),
        "combined": CombinedEdit((FeatureEdit(features, 2.0), ErrorEdit(directions(d_in), center))),
    }


def idle_edits(d_in: int, d_sae: int) -> dict[str, Edit]:
    """Return one edit of each kind that should change nothing."""
    never = RunningEvidenceGate(torch.arange(4), torch.ones(4), 0.9, float("inf"))
    return {
        "no feature": FeatureEdit(()),
        "itself": FeatureEdit((1, 2), -1.0),
        "no clamp": FeatureClamp((), ()),
        "no clamp everywhere": FeatureClamp((), (), "everywhere"),
        "multiplier -1": DirectionEdit(directions(d_in), torch.ones(d_in), -1.0),
        "no direction": DirectionEdit(torch.zeros(0, d_in), torch.ones(d_in)),
    } | {f"closed {name}": replace(edit, gate=never) for name, edit in strong_edits(d_in, d_sae).items()}  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("fires", [[[0, -1, 3], [0, 0, 5], [-9, 0, 0]]]),
        ("any_fires", [[[-9, -1, 3], [0, 0, 5], [-9, -1, 0]]]),
        ("everywhere", [[[-9, -1, 3], [-9, -1, 5], [-9, -1, 0]]]),
    ],
)
def test_a_clamp_by_hand(where: Any, expected: list[Any]) -> None:
    before = ACTS.clone()
    assert FeatureClamp((0, 1), (-9.0, -1.0), where).apply(ACTS).tolist() == expected
    assert torch.equal(before, ACTS)


def test_a_feature_edit_by_hand() -> None:
    assert FeatureEdit((1,), 0.5).apply(ACTS).tolist() == [[[0, -1, 3], [0, 0, 5], [1, 0, 0]]]
    assert FeatureEdit((1, 2)).apply(ACTS).tolist() == [[[0, 0, 0], [0, 0, 0], [1, 0, 0]]]


@pytest.mark.parametrize("features", [[1, 2], torch.tensor([1, 2]), np.array([1, 2]), [torch.tensor(1), np.int64(2)]], ids=repr)
def test_features_may_be_any_row_of_whole_numbers(features: Any) -> None:
    assert FeatureEdit(features) == FeatureEdit((1, 2))
    assert FeatureClamp(features, torch.tensor([0.5, 2.0])) == FeatureClamp((1, 2), (0.5, 2.0))  # type: ignore[arg-type]
    assert FeatureEdit(features).apply(ACTS).tolist() == FeatureEdit((1, 2)).apply(ACTS).tolist()


@pytest.mark.parametrize("features", [3, (1.5,), torch.tensor([1.0]), torch.tensor(3), [[1, 2]], None], ids=repr)
def test_features_that_are_no_indices_are_refused(features: Any) -> None:
    for make in (FeatureEdit, lambda features: FeatureClamp(features, (1.0,))):
        with pytest.raises(ConfigError, match="expected integer features in a tuple, list or tensor"):
            make(features)


@pytest.mark.parametrize("edit", [FeatureEdit((3,)), FeatureEdit((-1,)), FeatureClamp((0, 3), (1.0, 1.0))], ids=repr)
def test_features_that_the_sae_lacks_are_refused(edit: Any) -> None:
    with pytest.raises(ConfigError, match="features from 0 to 2"):
        edit.apply(ACTS)


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="one value for each feature of a clamp, got 1 for 2 features"):
        FeatureClamp((0, 1), (1.0,))
    with pytest.raises(ConfigError, match=r"got 3\.0 for 2 features"):
        FeatureClamp((0, 1), 3.0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="where out of fires, any_fires, everywhere, got 'sometimes'"):
        FeatureClamp((0,), (1.0,), "sometimes")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected orthonormal directions, got others; give orthonormal_rows"):
        DirectionEdit(torch.tensor([[1.0, 1.0]]), torch.zeros(2))
    narrow = DirectionEdit(directions(4), torch.zeros(4))
    with pytest.raises(ConfigError, match="width 8, as the activations, got 4"):
        random_splice().edited(activations(), narrow)
    with pytest.raises(ConfigError, match="expected an SAE that names its hook"):
        Splice(MTSAE(MTSAEConfig(d_in=8, d_sae=16, k=4, context_size=12)))


@pytest.mark.parametrize("multiplier", [-1.0, -0.5, 0.0, 2.0])
def test_a_direction_edit_scales_the_distance_to_the_center_and_nothing_else(multiplier: float) -> None:
    basis, center, h = directions(8), torch.arange(8.0), activations()
    edited = random_splice().edited(h, DirectionEdit(basis, center, multiplier))
    torch.testing.assert_close((edited - center) @ basis.T, -multiplier * ((h - center) @ basis.T), atol=1e-4, rtol=1e-4)
    rest = torch.eye(8) - basis.T @ basis
    torch.testing.assert_close(edited @ rest, h @ rest, atol=1e-4, rtol=1e-4)
    skewed = edited + basis[0]  # a broken variant, which leaves something along the directions, is noticed
    assert not torch.allclose((skewed - center) @ basis.T, -multiplier * ((h - center) @ basis.T), atol=1e-2)


def test_orthonormal_rows_span_the_same_and_drop_what_adds_nothing() -> None:
    rows = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    dependent = torch.cat([rows, rows[:1] + rows[1:2], 5 * rows[2:]])
    basis = orthonormal_rows(dependent)
    assert basis.shape == (3, 8)
    torch.testing.assert_close(basis @ basis.T, torch.eye(3))
    torch.testing.assert_close(dependent @ basis.T @ basis, dependent, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(dependent @ basis[:2].T @ basis[:2], dependent, atol=1e-2)
    assert orthonormal_rows(torch.zeros(2, 8)).shape == (0, 8)
    assert orthonormal_rows(1e-12 * rows).shape == (3, 8)  # small is not dependent
    DirectionEdit(basis, torch.zeros(8))


@pytest.mark.parametrize("name", idle_edits(32, 32))
def test_an_edit_of_nothing_is_the_identity_on_logits(name: str, lm: HookedLM) -> None:
    tokens = torch.randint(1, 4000, (3, 20), generator=torch.Generator().manual_seed(3))
    clean = lm.model(tokens, prepend_bos=False)
    hook = lm.splice.hook(idle_edits(lm.sae.cfg.d_in, lm.sae.cfg.d_sae)[name], lm.masked(tokens))
    torch.testing.assert_close(
        lm.model.run_with_hooks(tokens, fwd_hooks=[hook], prepend_bos=False), clean, atol=1e-4, rtol=1e-4
    )

    def without_error_term(h: Tensor, hook: Any) -> Tensor:
        return lm.sae.decode(lm.sae.encode(h))

    broken = lm.model.run_with_hooks(tokens, fwd_hooks=[(lm.splice.hook_name, without_error_term)], prepend_bos=False)
    assert (broken - clean).abs().max() > 1e-2


@pytest.mark.parametrize("name", strong_edits(8, 16))
def test_masked_positions_are_never_edited(name: str) -> None:
    splice, h, edit = random_splice(), activations(), strong_edits(8, 16)[name]
    masked = torch.zeros(3, 12, dtype=torch.bool)
    masked[:, 0] = masked[1, 5] = masked[2, 7:] = True
    edited = splice.edited(h, edit, masked)
    assert torch.equal(edited[masked], h[masked])
    assert (edited != h).any(dim=-1)[~masked].all()
    masked[:, 0] = False  # the encoder gives position 0 no feature anyway
    assert (splice.edited(h, edit) != h).any(dim=-1)[masked].all()  # the others would have been edited


@pytest.mark.parametrize("name", strong_edits(8, 16))
def test_an_edit_may_be_kept_to_some_positions(name: str) -> None:
    splice, h, edit = random_splice(), activations(), strong_edits(8, 16)[name]
    where = torch.rand(3, 12, generator=torch.Generator().manual_seed(4)) < 0.5
    masked = torch.zeros(3, 12, dtype=torch.bool)
    masked[:, :2] = True
    everywhere, kept = splice.edited(h, edit, masked), splice.edited(h, edit, masked, where)
    expected = torch.where(where.unsqueeze(-1), everywhere, h)
    assert torch.equal(kept, expected)
    assert not torch.equal(kept, everywhere)
    hook_name, function = splice.hook(edit, masked, where)
    assert hook_name == splice.hook_name
    assert torch.equal(function(h, None), kept)


def test_a_closed_gate_leaves_positions_alone() -> None:
    splice, h = random_splice(), activations()
    acts = splice.feature_acts(h)
    gate = FeatureActiveGate(torch.tensor([0]))
    edited = splice.edited(h, replace(strong_edits(8, 16)["directions"], gate=gate))  # type: ignore[type-var]
    changed = (edited != h).any(dim=-1)
    assert torch.equal(changed, acts[..., 0] > 0)
    assert 0 < changed.sum() < changed.numel()


def test_edits_that_share_a_gate_ask_it_once() -> None:
    class Counting(AlwaysOpen):
        calls = 0

        def open_from(self, feature_acts: Tensor, state: Tensor | None) -> Any:
            Counting.calls += 1
            return super().open_from(feature_acts, state)

    gate = Counting()
    masked = torch.tensor([[True, False, False]])
    edits = [FeatureEdit((0,), m, gate) for m in (1.0, 2.0)] + [
        FeatureEdit((0,), 1.0, SequenceRateGate(torch.tensor([1]), 0.5))
    ]
    one, two, other = open_positions(SAEState(random_splice().sae, torch.zeros(1, 3, 8), ACTS), edits, masked)
    assert Counting.calls == 1
    assert one.tolist() == two.tolist() == [[False, True, True]]
    assert other.tolist() == [[False, False, False]]


def test_the_delta_is_that_of_decoding() -> None:
    splice, h = random_splice(), activations()
    acts = splice.feature_acts(h)
    for name in ("features", "fires", "any_fires", "everywhere"):
        edit: Any = strong_edits(8, 16)[name]
        expected = (edit.apply(acts) - acts) @ splice.sae.W_dec  # the bias of the decoder cancels
        torch.testing.assert_close(edit.delta(splice.sae_state(h, acts)), expected, atol=1e-4, rtol=1e-4)


def test_a_state_of_some_rows() -> None:
    splice, h = random_splice(), activations()
    state = splice.sae_state(h, splice.feature_acts(h))
    kept = torch.tensor([True, False, True])
    some = state.rows(kept)
    assert isinstance(some, SAEState)
    torch.testing.assert_close(some.sae_out, state.sae_out[kept])
    assert state.rows(torch.ones(3, dtype=torch.bool)) is state


@pytest.mark.parametrize("name", strong_edits(8, 16))
def test_an_edit_keeps_the_dtype_of_the_model(name: str) -> None:
    """A model in bfloat16 with an SAE in float32: what comes back must fit the next layer."""
    splice, edit = random_splice(), strong_edits(8, 16)[name]
    h = activations().to(torch.bfloat16)
    edited = splice.edited(h, edit)
    assert edited.dtype == torch.bfloat16
    torch.testing.assert_close(edited.float(), splice.edited(h.float(), edit), atol=0.2, rtol=0.02)


def _make(kind: str) -> Any:
    generator = torch.Generator().manual_seed(0)
    sae: Any = {
        "mtsae": lambda: MTSAE(MTSAEConfig(d_in=8, d_sae=16, k=6, context_size=12)),
        "standard": lambda: StandardSAE(StandardSAEConfig(d_in=8, d_sae=16)),
        "rescaled": lambda: TopKSAE(TopKSAEConfig(d_in=8, d_sae=16, k=6, rescale_acts_by_decoder_norm=True)),
        "hooked": lambda: StandardSAE(StandardSAEConfig(d_in=8, d_sae=16)),
    }[kind]()
    for parameter in sae.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    if kind == "hooked":
        sae.hook_sae_recons.add_hook(lambda recons, hook: recons.relu())
    return sae


@pytest.mark.parametrize("kind", ["mtsae", "standard", "rescaled", "hooked"])
@pytest.mark.parametrize(
    "edit",
    [
        FeatureEdit((3, 7, 3), 2.0),
        FeatureEdit(()),
        FeatureClamp((5, 2), (4.0, -3.0), "any_fires"),
        FeatureClamp((1,), (7.0,), "everywhere"),
        FeatureEdit(tuple(range(16)), 1.0),
    ],
    ids=repr,
)
@torch.no_grad()
def test_the_change_is_that_of_decoding_all_features(kind: str, edit: FeatureEdit | FeatureClamp) -> None:
    """Decoders that are affine are asked for the rows of the edited features alone; others decode as ever."""
    sae, h = _make(kind), activations()
    feature_acts = sae.encode(h)
    expected = sae.decode(edit.apply(feature_acts)) - sae.decode(feature_acts)
    decoded: list[int] = []
    original = sae.decode
    sae.decode = lambda acts: decoded.append(acts[..., 0].numel()) or original(acts)
    torch.testing.assert_close(edit.delta(SAEState(sae, h, feature_acts)), expected, atol=1e-5, rtol=1e-5)
    if kind == "hooked":
        assert decoded == [36, 36]
    else:
        assert decoded == [len(set(edit.features)) + 1]
