"""Test the first lines of the benchmark's report on cells made by hand."""

from __future__ import annotations

from typing import Any

import pytest
from filled import filled

from mtsae_lens.experiments.benchmark.arms import OURS
from mtsae_lens.experiments.benchmark.cells import MethodsCell, ReferenceCell
from mtsae_lens.experiments.benchmark.headline import headline_section, summarize_task
from mtsae_lens.experiments.benchmark.task_results import TaskResults
from mtsae_lens.unlearning.task import Corpus, Task

TASK = Task((Corpus("f", "forget"), Corpus("n", "near"), Corpus("m", "near"), Corpus("x", "far")))


def corpus(delta: float) -> dict[str, Any]:
    documents = [
        {"document": str(i), "n_tokens": 2, "n_contexts": 1, "nll_clean": 3.0, "nll_edited": 3.0 + delta} for i in range(3)
    ]
    return {"documents": documents, "nll_delta": delta, "nll_clean": 3.0}


def result(forget: float, random: float | None = None, *, budget: str = "0.05 goal", attacks: Any = None) -> dict[str, Any]:
    row: dict[str, Any] = {"corpora": {"f": corpus(forget), "n": corpus(0.01), "m": corpus(0.02), "x": corpus(0.003)}}
    if random is not None:
        row["random"] = {"f": {"documents": [{"document": str(i), "n_tokens": 2, "nll_delta": random} for i in range(3)]}}
    return {"test": {budget: row}} | ({} if attacks is None else {"attacks": attacks})


def attacked(before: float, after: float, *, share: tuple[float, float, float] | None = None) -> dict[str, Any]:
    curve = [{"step": step, "nll": nll, "nll_clean": 3.0} for step, nll in ((0, before), (5, after), (20, after + 0.5))]
    found: dict[str, Any] = {"relearning": {"hook in place": {"4": curve[:1], "16": curve}}}
    if share is not None:
        mean, low, high = share
        recovered = {"nll": 3.5, "share": {"mean": mean, "low": low, "high": high}}
        lower = {"nll": 3.9, "share": {"mean": mean / 2, "low": 0.0, "high": mean}}
        found["recovery"] = {"by_subspace": {"nearly blind": {"attacked": lower}, "any direction": {"attacked": recovered}}}
    return found


def task_results(methods: dict[str, Any], reference: dict[str, Any] | None = None) -> TaskResults:
    cells: dict[str, Any] = {
        f"own/{name}/0": filled(MethodsCell, {"methods": {name: found}}) for name, found in methods.items()
    }
    if reference is not None:
        cells["own/reference"] = filled(ReferenceCell, reference)
    return TaskResults("own", TASK, cells, [OURS, "topk"])


REFERENCE = {
    "corpora": {"f": corpus(1.2), "n": corpus(-0.01), "m": corpus(0.03), "x": corpus(0.0)},
    "attacks": attacked(4.2, 3.6),
}


def rows(results: TaskResults) -> list[list[Any]]:
    table = headline_section(results).table
    assert table is not None
    assert table.header == ["method", "forgotten", "near", "far", "random", "back by relearning", "back by perturbation"]
    return [list(row) for row in table.rows]


def test_forgotten_cost_and_what_came_back() -> None:
    ours = result(1.0, 0.1, attacks=attacked(4.0, 3.1, share=(0.82, 0.8, 0.84)))
    results = task_results({OURS: ours, "npo": result(1.15)}, REFERENCE)
    assert summarize_task(results) == (
        f"own: editing features of {OURS} adds +1.000 [+1.000, +1.000] nats per token to the loss on f, where a model that never saw the text "
        "has +1.200, at a cost of +0.020 [+0.020, +0.020] on near text and +0.003 [+0.003, +0.003] on far text (TEST, seeds: 1; within 0.05 on "
        "TUNE). Matched random features behind the same gate add +0.100. Relearning (16 documents, hook in place; seed 0) brings back 90% of "
        "the forgetting. Recovery attack: with the edit active, one vector added at the hook brings back 82% of the forgetting (95% interval "
        "80% to 84%). Of 2 methods, npo comes nearest to the reference (-0.050 nats from it)."
    )
    assert rows(results) == [
        [
            f"own: {OURS}",
            "+1.000 [+1.000, +1.000]",
            "+0.020",
            "+0.003",
            "+0.100",
            "90% (16 documents, hook in place)",
            "82% [80%, 84%]",
        ],
        ["own: npo", "+1.150 [+1.150, +1.150]", "+0.020", "+0.003", None, None, None],
        ["own: reference", "+1.200", "+0.030", "+0.000", None, "50% (16 documents, hook in place)", None],
    ]


@pytest.mark.parametrize(
    ("random", "said"),
    [
        (1.1, "add +1.100, so the choice of features adds nothing"),
        (1.0, "make the same edit (+1.000): the directions of so many features span the whole activation"),
        (0.5, "add +0.500, which is 50% of it."),
        (0.1, "add +0.100. "),
    ],
)
def test_random_features_that_forget_as_much_are_named(random: float, said: str) -> None:
    assert said in summarize_task(task_results({OURS: result(1.0, random)}, REFERENCE))


def test_without_a_reference_the_setting_is_the_one_with_the_most_loss() -> None:
    results = task_results({"topk": result(0.4, budget="0.05"), "npo": result(0.9, budget="0.05")})
    said = summarize_task(results)
    assert said.startswith("own: editing features of topk adds +0.400 [")
    assert "never saw" not in said
    assert said.endswith("It was not attacked. Of 2 methods, npo adds the most (+0.900).")
    assert [row[0] for row in rows(results)] == ["own: topk", "own: npo"]


def test_a_share_of_nothing_is_not_shown() -> None:
    results = task_results({OURS: result(0.001, attacks=attacked(3.001, 2.0))}, REFERENCE)
    assert rows(results)[0][-2:] == [None, None]


def test_a_method_without_a_setting_within_the_budget() -> None:
    results = task_results({OURS: {"test": {}}, "npo": result(0.9)}, REFERENCE)
    assert (
        summarize_task(results)
        == f"own: no setting of {OURS} is within 0.05 nats on TUNE, so nothing was forgotten at that cost."
    )
    assert [row[0] for row in rows(results)] == ["own: npo", "own: reference"]
