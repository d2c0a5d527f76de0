"""Test that outlier dimensions have the promised moments, and that other dimensions are unchanged."""

from __future__ import annotations

import pytest
import torch
from stored import stored

from mtsae_lens.data.blocks import StoredBlocks
from mtsae_lens.data.outliers import OutlierBlocks, OutlierDimensions
from mtsae_lens.errors import ConfigError


def stream(n: int = 64) -> StoredBlocks:
    h = torch.randn(n, 8, 6, generator=torch.Generator().manual_seed(0))
    h[:, 0] = 0
    return stored(h, batch_size_sequences=4, block_size_batches=n // 4)


@pytest.mark.parametrize("ratio", [1.0, 4.5])
def test_the_mean_is_so_many_times_what_varies(ratio: float) -> None:
    blocks = OutlierBlocks(stream(), OutlierDimensions(n_dimensions=2, scale=3.0, mean_to_variation=ratio))
    block = next(blocks.blocks(0))
    rows = block.h[~block.masked]
    variation = (rows - rows.mean(dim=0)).pow(2).sum(dim=-1).mean().sqrt()
    assert (rows.mean(dim=0).norm() / variation).item() == pytest.approx(ratio, rel=0.05)
    assert (rows[:, 4:].std(dim=0) / rows[:, :4].std(dim=0).mean()).tolist() == pytest.approx([3.0, 3.0], rel=0.2)


def test_other_dimensions_and_masked_positions_are_as_they_were() -> None:
    plain, outliers = (next(blocks.blocks(1)) for blocks in (stream(), OutlierBlocks(stream())))
    assert torch.equal(outliers.h[..., :4], plain.h[..., :4])
    assert torch.equal(outliers.masked, plain.masked)
    assert (outliers.h[:, 1:, 4:] != plain.h[:, 1:, 4:]).all()


def test_contexts_are_read_in_the_order_of_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StoredBlocks, "context_order", lambda _, number, n_contexts: torch.arange(n_contexts).flip(0))
    plain, outliers = (next(blocks.sequences()) for blocks in (stream(), OutlierBlocks(stream())))
    assert torch.equal(outliers[:, :4], plain[:, :4])


@pytest.mark.parametrize("settings", [{"n_dimensions": 0}, {"scale": 0.0}, {"mean_to_variation": -1.0}], ids=str)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        OutlierDimensions(**settings)  # type: ignore[arg-type]


def test_more_outliers_than_dimensions_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most 6 outlier dimensions, got 7"):
        next(OutlierBlocks(stream(), OutlierDimensions(n_dimensions=7)).blocks(0))
