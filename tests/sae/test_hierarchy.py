"""Test groups of nested features and the reconstructions of their prefixes."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from mtsae_lens.sae.hierarchy import feature_groups, group_sizes, nested_reconstructions, readable


@given(d_sae=st.integers(1, 40), n_groups=st.integers(1, 40))
def test_groups_part_the_features_as_equally_as_can_be(d_sae: int, n_groups: int) -> None:
    sizes = group_sizes(d_sae, n_groups)
    assert sizes == [len(part) for part in torch.arange(d_sae).tensor_split(n_groups)]
    groups = feature_groups(d_sae, n_groups)
    assert groups.bincount(minlength=n_groups).tolist() == sizes
    assert groups.tolist() == sorted(groups.tolist())


def test_group_g_reads_the_scales_up_to_g() -> None:
    assert readable(5, 3).int().tolist() == [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 0, 0, 1]]


def test_reconstructions_of_prefixes() -> None:
    torch.manual_seed(0)
    acts, W_dec, b_dec = torch.rand(6, 7), torch.randn(7, 3), torch.randn(3)
    found = nested_reconstructions(acts.double(), W_dec.double(), b_dec.double(), [3, 2, 2])
    for group, end in enumerate((3, 5, 7)):
        assert_close(found[group], (acts[:, :end] @ W_dec[:end] + b_dec).double(), atol=1e-5, rtol=1e-5)
