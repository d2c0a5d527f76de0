"""Test scores by name: each can be constructed and called, and an unknown name gives the nearest ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from mtsae_lens.data.token_tables import read_tokens
from mtsae_lens.errors import ConfigError
from mtsae_lens.unlearning.selection.evidence import SelectionEvidence
from mtsae_lens.unlearning.selection.scores import SCORES, make_score, register_score


@pytest.fixture(scope="module")
def evidence(lm: Any, text_file: Path, sea_file: Path) -> SelectionEvidence:
    tables = [read_tokens(str(path), "select", lm.cutter, 4) for path in (text_file, sea_file)]
    return SelectionEvidence(lm, tables[0], far=(tables[1],))


@pytest.mark.parametrize("name", SCORES)
def test_every_score_scores_every_feature(name: str, evidence: SelectionEvidence) -> None:
    score = make_score(name)
    assert score.name == name
    values = score(evidence)
    assert values.shape == (32,)
    assert not values.isnan().any()
    assert (values < torch.inf).all()
    assert torch.equal(values, score(evidence))


def test_settings_are_those_of_the_class() -> None:
    assert make_score("attribution", retain_weight=7.0) == SCORES["attribution"](retain_weight=7.0)
    assert make_score("attribution") != make_score("attribution", retain_weight=7.0)


def test_unknown_names_and_settings_are_named() -> None:
    with pytest.raises(ConfigError, match=r"got 'atribution'\. Did you mean 'attribution'"):
        make_score("atribution")
    with pytest.raises(
        ConfigError, match=r"expected a setting of the score 'attribution', got 'retain_wieght'\. Did you mean 'retain_weight'"
    ):
        make_score("attribution", retain_wieght=1.0)


# registered scores ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loudest:
    floor: float = 0.0

    name = "loudest"

    def __call__(self, evidence: SelectionEvidence) -> torch.Tensor:
        return evidence.forget_statistics.mean_activation.clamp(min=self.floor)


def test_a_registered_score_is_made_by_its_name(monkeypatch: pytest.MonkeyPatch, evidence: SelectionEvidence) -> None:
    monkeypatch.setitem(SCORES, "loudest", Loudest)
    monkeypatch.delitem(SCORES, "loudest")
    with pytest.raises(ConfigError, match="got 'loudest'"):
        make_score("loudest")
    assert register_score(Loudest) is Loudest
    assert make_score("loudest", floor=2.0) == Loudest(floor=2.0)
    assert torch.equal(make_score("loudest")(evidence), evidence.forget_statistics.mean_activation)
    with pytest.raises(ConfigError, match=r"expected a setting of the score 'loudest', got 'flor'\. Did you mean 'floor'"):
        make_score("loudest", flor=1.0)
    assert register_score(Loudest) is Loudest  # as when a module is loaded once more


def test_a_name_that_is_taken_or_missing_is_refused() -> None:
    @dataclass(frozen=True)
    class Other:
        name = "attribution"

        def __call__(self, evidence: SelectionEvidence) -> torch.Tensor:
            raise NotImplementedError

    before = SCORES["attribution"]
    with pytest.raises(ConfigError, match=r"got 'attribution', which .*effect_scores\.Attribution has"):
        register_score(Other)
    assert SCORES["attribution"] is before
    with pytest.raises(ConfigError, match="expected a dataclass"):
        register_score(make_score)
