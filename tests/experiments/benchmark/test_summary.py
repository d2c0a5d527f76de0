"""Test estimates over seeds and documents against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from filled import filled

from mtsae_lens.experiments.benchmark.cells import MeasuredCorpus, MethodResult
from mtsae_lens.experiments.benchmark.summary import at_cost, difference
from mtsae_lens.unlearning.measures.bootstrap import two_level_interval
from mtsae_lens.unlearning.task import Corpus, Task

TASK = Task(tuple(Corpus(s, r) for s, r in (("f", "forget"), ("n1", "near"), ("n2", "near"), ("x1", "far"), ("u", "neutral"))))  # type: ignore[arg-type]
N_TOKENS = (1, 3)


def corpus(deltas: Sequence[float]) -> dict[str, Any]:
    """Of two documents with 1 and 3 tokens."""
    rows = [
        {"document": str(i), "n_tokens": n, "nll_clean": 2.0, "nll_edited": 2.0 + d}
        for i, (n, d) in enumerate(zip(N_TOKENS, deltas, strict=True))
    ]
    return {"documents": rows}


def random(deltas: Sequence[float]) -> dict[str, Any]:
    """Of drawn features, documents hold the change alone."""
    return {
        "documents": [
            {"document": str(i), "n_tokens": n, "nll_delta": d} for i, (n, d) in enumerate(zip(N_TOKENS, deltas, strict=True))
        ]
    }


def cell(forget: Sequence[float], *, near: float = 0.0, far: float = 0.0, drawn: Any = None) -> MethodResult:
    corpora = {
        "f": corpus(forget),
        "n1": corpus((near, near)),
        "n2": corpus((0, 0)),
        "x1": corpus((far, far)),
        "u": corpus((9, 9)),
    }
    row: dict[str, Any] = {"corpora": corpora}
    if drawn is not None:
        row["random"] = {"f": random(drawn)}
    return filled(MethodResult, {"test": {"0.05": row}})


NOTHING = filled(MethodResult, {})


def sums(*seeds: Sequence[float]) -> list[torch.Tensor]:
    return [torch.tensor(seed, dtype=torch.float64) * torch.tensor(N_TOKENS) for seed in seeds]


def test_a_mean_is_of_seeds_each_per_token() -> None:
    found = at_cost([cell((4, 0), near=0.1, far=0.3), cell((0, 4), near=0.3, far=0.1)], "0.05", TASK)
    assert found is not None
    assert found.forget.mean == pytest.approx((1.0 + 3.0) / 2)
    assert found.near is not None
    assert found.near.mean == pytest.approx(0.2)
    assert found.far.mean == pytest.approx(0.2)
    assert (found.exact_recall, found.gap) == (None, None)
    assert (found.forget.n_seeds, found.forget.n_documents, found.n_missing) == (2, 2, 0)
    assert found.random is None
    assert found.more_than_random is None
    low, high = two_level_interval(sums((4, 0), (0, 4)), sums((1, 1), (1, 1)), 0)
    assert (found.forget.low, found.forget.high) == pytest.approx((low, high))
    assert low < 2.0 < high


def test_near_is_the_corpus_that_lost_most_over_all_seeds() -> None:
    cells = [cell((1, 1), near=-0.5), cell((1, 1), near=0.2)]  # n1 -0.15 on average, n2 0
    found = at_cost(cells, "0.05", TASK)
    assert found is not None
    assert found.near is not None
    assert found.near.mean == 0.0
    found = at_cost([cell((1, 1), near=-0.1), cell((1, 1), near=0.2)], "0.05", TASK)
    assert found is not None
    assert found.near is not None
    assert found.near.mean == pytest.approx(0.05)


def test_a_task_without_near_text_has_no_such_loss() -> None:
    found = at_cost([cell((1, 1))], "0.05", Task((Corpus("f", "forget"), Corpus("x1", "far"))))
    assert found is not None
    assert found.near is None


def test_seeds_without_a_setting_are_counted_and_left_out() -> None:
    found = at_cost([NOTHING, cell((1, 1)), NOTHING, cell((3, 3))], "0.05", TASK)
    assert found is not None
    assert (found.n_missing, found.forget.n_seeds) == (2, 2)
    assert found.forget.mean == pytest.approx(2.0)
    assert at_cost([NOTHING, NOTHING], "0.05", TASK) is None
    assert at_cost([cell((1, 1))], "0.02", TASK) is None


def test_more_than_random_is_paired_by_document() -> None:
    """Documents differ far more than the edit from the drawn features: unpaired, the interval would be as wide as that."""
    found = at_cost([cell((10, 0), drawn=(9, -1)), cell((20, 0), drawn=(19, -1))], "0.05", TASK)
    assert found is not None
    assert found.random is not None
    assert found.more_than_random is not None
    assert found.random.mean == pytest.approx(((9 - 3) / 4 + (19 - 3) / 4) / 2)
    assert found.more_than_random.mean == pytest.approx(1.0)
    assert (found.more_than_random.low, found.more_than_random.high) == pytest.approx((1.0, 1.0))
    assert found.forget.high - found.forget.low > 1


def test_a_difference_is_paired_by_seed() -> None:
    ours = [cell((5, 1)), NOTHING, cell((50, 10)), cell((7, 7))]
    theirs = [cell((4, 0)), cell((3, 3)), cell((48, 8)), NOTHING]
    found = difference(ours, theirs, "0.05", TASK)
    assert found is not None
    assert (found.mean, found.n_seeds) == (pytest.approx((1.0 + 2.0) / 2), 2)
    assert (found.low, found.high) == pytest.approx((1.0, 2.0))
    other_way = difference(theirs, ours, "0.05", TASK)
    assert other_way is not None
    assert other_way.mean == pytest.approx(-1.5)
    assert difference(ours[:2], theirs[:1], "0.05", TASK) == difference(ours[:1], theirs[:1], "0.05", TASK)
    assert difference([NOTHING, cell((1, 1))], [cell((1, 1)), NOTHING], "0.05", TASK) is None


def test_the_gap_is_paired_with_the_reference_by_document() -> None:
    cells = [cell((4, 0)), cell((0, 4))]
    found = at_cost(cells, "0.05", TASK, filled(MeasuredCorpus, corpus((1, 2))))
    assert found is not None
    assert found.gap is not None
    assert found.gap.mean == pytest.approx((1.0 + 3.0) / 2 - (1 * 1 + 2 * 3) / 4)
    low, high = two_level_interval(sums((3, -2), (-1, 2)), sums((1, 1), (1, 1)), 0)
    assert (found.gap.low, found.gap.high) == pytest.approx((low, high))


def test_recall_is_of_questions_not_of_tokens() -> None:
    asked = Task((Corpus("facts:forget:known", "forget"), Corpus("x1", "far")))
    result = cell((4, 0)).to_json()
    of_forget = result["test"]["0.05"]["corpora"].pop("f")
    for row, n_contexts, recall in zip(of_forget["documents"], (1, 4), (1.0, 0.25), strict=True):
        row |= {"n_contexts": n_contexts, "exact_recall": recall}
    result["test"]["0.05"]["corpora"]["facts:forget:known"] = of_forget
    found = at_cost([MethodResult.from_json(result)], "0.05", asked)
    assert found is not None
    assert found.exact_recall is not None
    assert found.exact_recall.mean == pytest.approx(2 / 5)
