"""Test that directions of the error are ranked by how much more of it lies there on forget text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mtsae_lens.data.token_tables import TokenTable, read_tokens
from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.error_edits import CombinedEdit, ErrorEdit
from mtsae_lens.splice.gates import AlwaysOpen
from mtsae_lens.unlearning.candidates import ErrorRemoval, Grid, direction_candidates, feature_candidates
from mtsae_lens.unlearning.selection.error_directions import error_directions
from mtsae_lens.unlearning.selection.evidence import SelectionEvidence


@pytest.fixture
def evidence(lm: Any, cutter: Any, text_file: Path, sea_file: Path) -> SelectionEvidence:
    forget, near, far = (read_tokens(str(source), "select", cutter, 5) for source in (sea_file, text_file, "kjv"))
    return SelectionEvidence(lm, forget, (near,), (far,))


def errors(lm: Any, table: TokenTable) -> torch.Tensor:
    kept = []
    for row in table.tokens:
        h, masked = lm.activations(row[None]), lm.masked(row[None])
        acts = lm.splice.feature_acts(h, masked)
        kept.append((h - lm.sae.decode(acts))[0][~masked[0]])
    return torch.cat(kept).detach().double()


def test_directions_are_ranked_by_what_forget_text_has_more(lm: Any, evidence: SelectionEvidence) -> None:
    basis, center = error_directions(lm, evidence.forget, [*evidence.near, *evidence.far])
    rows = [errors(lm, table) for table in (evidence.forget, *evidence.near, *evidence.far)]
    mean = torch.stack([r.mean(dim=0) for r in rows[1:]]).mean(dim=0)
    assert torch.allclose(center.double(), mean, atol=1e-4)
    along = [((r - mean) @ basis.double().T).square().mean(dim=0) for r in rows]
    more = along[0] - (along[1] + along[2]) / 2
    assert torch.allclose(basis @ basis.T, torch.eye(32), atol=1e-4)
    assert bool((more.diff() <= 1e-6 * more.abs().max()).all())
    moments = [(r - mean).T @ (r - mean) / len(r) for r in rows]
    assert more[0].item() == pytest.approx(
        torch.linalg.eigvalsh(moments[0] - (moments[1] + moments[2]) / 2)[-1].item(), rel=1e-3
    )


def test_without_text_to_compare_with_there_are_none(lm: Any, evidence: SelectionEvidence) -> None:
    with pytest.raises(DataError, match="expected near or far text"):
        error_directions(lm, evidence.forget, [])


def test_every_rank_is_tried_with_every_setting(evidence: SelectionEvidence) -> None:
    grid = Grid(n_features=(2,), multipliers=(1.0, 2.0), error_ranks=(0, 3, 99))
    gates = {0.05: AlwaysOpen()}
    candidates = feature_candidates({"frequency": (4, 7, 9)}, grid, gates, evidence)
    assert [(c.setting["multiplier"], c.setting.get("error_rank"), c.error_rank) for c in candidates] == [
        (m, rank, rank or 0) for m in (1.0, 2.0) for rank in (None, 3, 32)
    ]
    basis, center = error_directions(evidence.lm, evidence.forget, evidence.near)
    expected = CombinedEdit((FeatureEdit((4, 7), 1.0), ErrorEdit(basis[:3], center)))
    assert candidates[1].edit == expected
    assert candidates[1].of((5,)) == CombinedEdit((FeatureEdit((5,), 1.0), ErrorEdit(basis[:3], center)))
    assert candidates[0].edit == FeatureEdit((4, 7), 1.0)


def test_a_direction_is_combined_too(evidence: SelectionEvidence) -> None:
    remove = ErrorRemoval.fit(evidence, (0, 2))
    candidates = direction_candidates(torch.ones(32), torch.zeros(32), (1.0,), {None: AlwaysOpen()}, remove)
    assert [type(c.edit).__name__ for c in candidates] == ["DirectionEdit", "CombinedEdit"]
    assert ErrorRemoval.fit(evidence, (0,)).ranks == (0,)


def test_ranks_are_checked() -> None:
    with pytest.raises(ConfigError, match="expected error_ranks of at least 0"):
        Grid(error_ranks=(-1,))
