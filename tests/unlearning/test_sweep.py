"""Test sweeps: an outcome is that of the worst corpus of each role, and the choice between outcomes."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.unlearning.measures.effects import edit_losses
from mtsae_lens.unlearning.measures.results import EditLoss
from mtsae_lens.unlearning.sweep import (
    Candidate,
    Outcome,
    most_forgetting,
    nearest_to,
    summarize_outcome,
    sweep,
    within_budgets,
)
from mtsae_lens.unlearning.task import Corpus, Task


def loss(delta: float, clean: float = 3.0) -> EditLoss:
    """Of two contexts with 2 and 6 counted tokens, all of the change in the second."""
    n_tokens = torch.tensor([2.0, 6.0])
    edited = n_tokens * clean + torch.tensor([0.0, 8 * delta])
    return EditLoss("c", ("a", "b"), 1.0, n_tokens, n_tokens * clean, edited)


def corpora(**roles: str) -> tuple[Corpus, ...]:
    return tuple(Corpus(source, role) for source, role in roles.items())  # type: ignore[arg-type]


def found(*rows: tuple[float, float, float]) -> list[Outcome]:
    """`(forget, near, far)` on a clean loss of 4."""
    return [Outcome({"place": i}, forget, near, far, 4 + forget) for i, (forget, near, far) in enumerate(rows)]


def test_an_outcome_is_that_of_the_worst_corpus_of_each_role() -> None:
    task = Task(corpora(f="forget", n1="near", x1="far", n2="near", x2="far", u="neutral"))
    deltas = {"f": 1.0, "n1": 0.2, "n2": 0.1, "x1": -0.3, "x2": -0.1, "u": 9.0}
    setting = {"multiplier": 2.0}
    made = summarize_outcome(task, setting, {source: loss(delta) for source, delta in deltas.items()})
    assert made.setting == setting
    values = (made.forget, made.near, made.far, made.forget_nll)
    assert values == pytest.approx((1.0, 0.2, -0.1, 4.0))


def test_without_near_text_nothing_near_is_lost() -> None:
    made = summarize_outcome(Task(corpora(f="forget", x="far")), {}, {"f": loss(1.0), "x": loss(0.5)})
    assert (made.near, made.far) == pytest.approx((0.0, 0.5))


def test_a_loss_that_is_no_number_is_never_chosen_wherever_it_stands() -> None:
    task = Task(corpora(f="forget", x1="far", x2="far", x3="far"))
    fine = {"f": loss(1.0), "x1": loss(0.0), "x2": loss(0.0), "x3": loss(0.0)}
    for broken in fine:
        outcomes = [summarize_outcome(task, {}, losses) for losses in (fine | {broken: loss(math.nan)}, fine)]
        for order in (outcomes, outcomes[::-1]):
            within = within_budgets(order, 0.1, 0.1)
            assert within == [order.index(outcomes[1])]
            assert nearest_to(order, within, 9.0) == most_forgetting(order, within, 9.0) == within[0]
        row = outcomes[0].to_json()
        assert row["forget" if broken == "f" else "far"] is None
        json.dumps(row, allow_nan=False)


def test_a_sweep_measures_every_candidate_on_tune_alone(
    lm: Any, text_file: Path, sea_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task(
        (Corpus(str(sea_file), "forget"), Corpus(str(text_file), "far"), Corpus("kjv", "near"), Corpus("sotu", "neutral")), 4
    )
    tune = task.tables("tune", lm.cutter)
    splits = []
    original = Task.table
    monkeypatch.setattr(
        Task,
        "table",
        lambda self, source, split, cutter: splits.append((source, split)) or original(self, source, split, cutter),
    )
    edits = [FeatureEdit((), 0.0), FeatureEdit((0, 1, 2, 3), 2.0), FeatureEdit(tuple(range(32)), 1.0)]
    outcomes = sweep(lm, task, [Candidate({"number": number}, edit) for number, edit in enumerate(edits)])
    assert sorted(splits) == sorted((source, "tune") for source in (str(sea_file), str(text_file), "kjv"))
    assert [o.setting["number"] for o in outcomes] == [0, 1, 2]
    for edit, made in zip(edits, outcomes, strict=True):
        alone = {source: edit_losses(lm, tune[source], [edit])[0] for source in tune}
        expected = [alone[source].nll_delta for source in (str(sea_file), "kjv", str(text_file))]
        assert [made.forget, made.near, made.far] == pytest.approx(expected, abs=1e-6)
        forget = alone[str(sea_file)]
        assert made.forget_nll == pytest.approx((forget.nll_edited.sum() / forget.n_tokens.sum()).item())
    assert outcomes[0].forget == 0.0 != outcomes[2].forget


def test_a_setting_must_keep_both_budgets() -> None:
    rows = found((1, 0.1, 0.05), (2, 0.11, 0.0), (3, 0.0, 0.06), (4, -1.0, -1.0), (5, 0.2, 0.2))
    assert within_budgets(rows, near_budget=0.1, far_budget=0.05) == [0, 3]
    assert within_budgets(rows, near_budget=0.05, far_budget=0.1) == [2, 3]
    assert within_budgets(rows, near_budget=-2, far_budget=1) == []


def test_the_most_forgetting_is_no_worse_than_guessing() -> None:
    rows = found((1, 0, 0), (3, 0, 0), (2, 0, 0), (9, 0, 0))
    assert most_forgetting(rows, [0, 1, 2, 3], max_nll=20.0) == 3
    assert most_forgetting(rows, [0, 1, 2, 3], max_nll=8.0) == 1
    assert most_forgetting(rows, [0, 2, 3], max_nll=8.0) == 2
    assert most_forgetting(rows, [0, 1, 2, 3], max_nll=7.0) == 1  # 4 + 3 is not above 7
    assert most_forgetting(rows, [3], max_nll=8.0) is None
    assert most_forgetting(rows, [], max_nll=8.0) is None


def test_the_nearest_to_a_goal_is_on_either_side_of_it() -> None:
    rows = found((0.0, 0, 0), (1.0, 0, 0), (1.6, 0, 0), (5.0, 0, 0))
    assert [nearest_to(rows, [0, 1, 2, 3], goal) for goal in (-9.0, 0.4, 0.6, 1.2, 1.4, 3.0, 4.0)] == [0, 0, 1, 1, 2, 2, 3]
    assert nearest_to(rows, [0, 3], 1.0) == 0
    assert nearest_to(rows, [], 1.0) is None


def test_choices_equal_a_search_by_hand() -> None:
    rng = random.Random(0)
    for _ in range(50):
        rows = found(*((rng.random() * 5, rng.random(), rng.random()) for _ in range(20)))
        near, far, goal = rng.random(), rng.random(), rng.random() * 5
        places = [i for i in range(20) if not (rows[i].near > near or rows[i].far > far)]
        assert within_budgets(rows, near, far) == places
        best = None
        for place in places:
            if not rows[place].forget_nll > 7 and (best is None or rows[place].forget > rows[best].forget):
                best = place
        assert most_forgetting(rows, places, 7) == best
        gaps = sorted((abs(rows[place].forget - goal), place) for place in places)
        assert nearest_to(rows, places, goal) == (gaps[0][1] if gaps else None)
