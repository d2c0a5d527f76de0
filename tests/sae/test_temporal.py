"""Test the temporal front end against torch's own convolution and layer norm."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from mtsae_lens.sae.temporal import (
    PADDINGS,
    SCALE_NORMS,
    find_walls,
    gather_reads,
    lay_out,
    normalize_scales,
    read_offsets,
    receptive_field,
    sequence_reads,
    tap_offsets,
    temporal_convolution,
)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def convolve(x: Tensor, taps: Tensor, dilations: Sequence[int], padding: str) -> Tensor:
    offsets = read_offsets(taps.shape[1], dilations, padding)
    used = [list(dict.fromkeys(tap_offsets(taps.shape[1], dilation, padding))) for dilation in dilations]
    return temporal_convolution(
        sequence_reads(x, find_walls(x), offsets, padding), lay_out(taps, dilations, padding, offsets), used
    )


def conv1d_reference(x: Tensor, taps: Tensor, dilation: int, padding: str) -> Tensor:
    """`taps (kernel_size, d_in)` as `torch.nn.Conv1d(groups=d_in)` would apply them; torch correlates, so the kernel is flipped."""
    if dilation == 0:
        return x * taps.sum(dim=0)
    reach = (taps.shape[0] - 1) * dilation
    padded = {
        "causal": lambda c: functional.pad(c, (reach, 0)),
        "zero": lambda c: functional.pad(c, (reach // 2, reach // 2)),
        "circular": lambda c: torch.cat([c[..., -(reach // 2) :], c, c[..., : reach // 2]], dim=-1) if reach else c,
    }[padding](x.transpose(1, 2))
    return functional.conv1d(padded, taps.flip(0).T.unsqueeze(1), dilation=dilation, groups=x.shape[2]).transpose(1, 2)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    pos=st.integers(1, 16),
    d_in=st.integers(1, 5),
    half=st.integers(0, 2),
    dilations=st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True),
    padding=st.sampled_from(PADDINGS),
)
# the first offset reaches the end, the second misses
@example(batch=1, pos=3, d_in=1, half=1, dilations=[2, 3], padding="causal")
@example(batch=1, pos=3, d_in=1, half=1, dilations=[2, 3], padding="zero")
def test_taps_are_a_depthwise_convolution(
    batch: int, pos: int, d_in: int, half: int, dilations: list[int], padding: str
) -> None:
    kernel_size = 2 * half + 1
    if padding == "circular" and half * max(dilations) > pos:
        pos += half * max(dilations)  # torch's circular padding wraps around once
    x, taps = randn(batch, pos, d_in), randn(len(dilations), kernel_size, d_in)
    found = convolve(x, taps, dilations, padding)
    assert found.shape == (batch, pos, len(dilations), d_in)
    for scale, dilation in enumerate(dilations):
        assert_close(found[:, :, scale], conv1d_reference(x, taps[scale], dilation, padding))


@pytest.mark.parametrize("kernel_size", [2, 4])
def test_causal_taps_may_be_even(kernel_size: int) -> None:
    x, taps = randn(2, 12, 3), randn(1, kernel_size, 3)
    assert_close(convolve(x, taps, (2,), "causal")[:, :, 0], conv1d_reference(x, taps[0], 2, "causal"))


def test_circular_taps_are_conv1d_with_circular_padding() -> None:
    conv = torch.nn.Conv1d(4, 4, 3, groups=4, padding=2, dilation=2, padding_mode="circular", bias=False, dtype=torch.float64)
    x = randn(2, 10, 4)
    taps = conv.weight.detach().squeeze(1).T.flip(0).unsqueeze(0)
    assert_close(convolve(x, taps, (2,), "circular")[:, :, 0], conv(x.transpose(1, 2)).transpose(1, 2))


@pytest.mark.parametrize(
    ("padding", "offsets", "field"),
    [("causal", [0, -4, -8], (8, 0)), ("circular", [4, 0, -4], (4, 4)), ("zero", [4, 0, -4], (4, 4))],
)
def test_offsets_and_receptive_field(padding: str, offsets: list[int], field: tuple[int, int]) -> None:
    assert tap_offsets(3, 4, padding) == offsets
    assert receptive_field(3, (1, 4, 2), padding) == field
    assert receptive_field(1, (1, 4, 2), padding) == (0, 0)
    assert tap_offsets(3, 0, padding) == [0, 0, 0]
    assert receptive_field(3, (0,), padding) == (0, 0)


@pytest.mark.parametrize("padding", PADDINGS)
def test_walls_cut_the_convolution_into_pieces(padding: str) -> None:
    x, taps = randn(1, 12, 3), randn(2, 3, 3)
    x[:, [0, 5]] = 0
    found = convolve(x, taps, (1, 2), padding)
    pieces = [x[:, 1:5], x[:, 6:12]]
    alone = [convolve(piece, taps, (1, 2), "causal" if padding == "causal" else "zero") for piece in pieces]
    assert_close(found[:, 1:5], alone[0])
    assert_close(found[:, 6:12], alone[1])


def test_circular_taps_read_across_the_lone_wall_at_the_start() -> None:
    x, taps = randn(1, 8, 2), torch.zeros(1, 3, 2, dtype=torch.float64)
    taps[0, 2] = 1.0  # reads 2 positions back
    x[:, 0] = 0
    assert_close(convolve(x, taps, (2,), "circular")[:, 1, 0], x[:, 7])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(walls=st.lists(st.integers(0, 11), max_size=4), shift=st.integers(0, 11))
def test_circular_taps_know_no_beginning(walls: list[int], shift: int) -> None:
    assume(len(set(walls)) != 1)  # a lone wall stops the circle unless it stands at the start, as BOS does
    x, taps = randn(1, 12, 3), randn(2, 3, 3)
    x[:, walls] = 0
    rolled = convolve(x.roll(shift, dims=1), taps, (1, 3), "circular")
    assert_close(rolled, convolve(x, taps, (1, 3), "circular").roll(shift, dims=1))


def test_read_offsets() -> None:
    assert read_offsets(3, (1, 2, 4, 8), "causal") == [0, -1, -2, -4, -8, -16]
    assert read_offsets(3, (1, 4), "zero") == [0, 4, 1, -1, -4]
    assert read_offsets(1, (1, 4), "circular") == [0]
    assert read_offsets(3, (0, 2), "causal") == [0, -2, -4]
    assert read_offsets(3, (0,), "zero") == [0]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(walls=st.lists(st.integers(0, 9), max_size=3), padding=st.sampled_from(PADDINGS), dilation=st.integers(1, 12))
def test_gathered_reads_are_the_reads_of_the_contexts(walls: list[int], padding: str, dilation: int) -> None:
    h = randn(2, 10, 3)
    h[:, walls] = 0
    offsets = read_offsets(3, (1, dilation), padding)
    rows = torch.tensor([19, 3, 3, 0, 10, 8])
    whole = torch.cat(
        [read.flatten(0, 1)[rows] for read in sequence_reads(h, find_walls(h), offsets, padding).values()], dim=-1
    )
    assert torch.equal(gather_reads(h, find_walls(h), offsets, padding)(rows), whole)
    assert torch.equal(whole[:, :3], h.flatten(0, 1)[rows])


@pytest.mark.parametrize("padding", PADDINGS)
def test_walls_are_the_positions_of_the_mask_and_not_rows_of_zeros(padding: str) -> None:
    """Activations that are equal to `b_dec` are zero once they are centered, and no wall for that."""
    x, walls, rows = randn(2, 8, 3), torch.zeros(2, 8, dtype=torch.bool), torch.arange(16)
    x[:, 3] = 0
    offsets = [0, -2]
    through = sequence_reads(x, walls, offsets, padding)[-2]
    assert torch.equal(through[:, 4], x[:, 2])  # across the row of zeros
    assert torch.equal(gather_reads(x, walls, offsets, padding)(rows)[12], torch.cat([x[1, 4], x[1, 2]]))
    walls[:, 3] = True
    assert not sequence_reads(x, walls, offsets, padding)[-2][:, 4].any()


def test_find_walls() -> None:
    x = torch.tensor([[[0.0, 0.0], [0.0, 1e-30], [-0.0, 0.0], [1.0, -1.0]]])
    assert find_walls(x).tolist() == [[True, False, True, False]]


def test_normalize_scales() -> None:
    convolved, x = 3 * randn(2, 5, 4, 6) + 1, randn(2, 5, 6)
    centred = convolved - convolved.mean(dim=-1, keepdim=True)
    normed = centred / (centred.pow(2).mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    mean = x.mean(dim=-1)[:, :, None, None]
    std = (x - x.mean(dim=-1, keepdim=True)).pow(2).mean(dim=-1).sqrt()[:, :, None, None]
    for scale_norm, expected in (("none", convolved), ("layer_norm", normed), ("rescaled_layer_norm", normed * std + mean)):
        assert_close(normalize_scales(convolved, x, scale_norm), expected)
        gain = torch.tensor([1.0, 0.3, 0.3, 0.3], dtype=torch.float64)[:, None]
        assert_close(normalize_scales(convolved, x, scale_norm, 0.3), expected * gain)


def test_a_scale_that_reads_the_token_alone_is_the_token() -> None:
    x = 5 * randn(2, 5, 6) + 3
    assert_close(normalize_scales(7 * x.unsqueeze(2), x, "rescaled_layer_norm").squeeze(2), x, rtol=1e-4, atol=1e-4)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(batch=st.integers(1, 3), pos=st.integers(1, 6), n_scales=st.integers(1, 4), d_in=st.integers(1, 6))
def test_normalize_scales_keeps_shapes(batch: int, pos: int, n_scales: int, d_in: int) -> None:
    for scale_norm in SCALE_NORMS:
        z = normalize_scales(randn(batch, pos, n_scales, d_in), randn(batch, pos, d_in), scale_norm)
        assert z.shape == (batch, pos, n_scales, d_in)
        assert z.isfinite().all()
