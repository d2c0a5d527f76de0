"""Test the benchmark's command: what it refuses, the order of its work, and the report of hand-made cells."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filled import filled

from mtsae_lens.errors import ConfigError, DataError, ModelError
from mtsae_lens.experiments.benchmark import run as module
from mtsae_lens.experiments.benchmark.arms import OURS, QUICK, TASKS, BenchmarkSize, BenchmarkTask
from mtsae_lens.experiments.benchmark.cells import Cell, MethodsCell, ReferenceCell, StabilityCell
from mtsae_lens.experiments.benchmark.report import BenchmarkReport, report_benchmark
from mtsae_lens.experiments.benchmark.results import BenchmarkResult
from mtsae_lens.experiments.benchmark.run import BenchmarkSettings, run_benchmark
from mtsae_lens.experiments.benchmark.task_results import TaskResults
from mtsae_lens.reporting.page import write_report
from mtsae_lens.unlearning.task import Corpus


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ("domain", "peple")}, r"expected a known task, got 'peple'. Did you mean 'people'"),
        ({"losses": ("npo", "simnp")}, r"got 'simnp'. Did you mean 'simnpo'"),
        ({"near": ("milton",)}, "give --forget"),
        ({"retain": ("milton",)}, "give --forget"),
        ({"neutral": ("milton",)}, "give --forget"),
    ],
)
def test_what_does_not_exist_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BenchmarkSettings(**settings)


@pytest.mark.parametrize("settings", [{"tasks": ()}, {"saes": {}}, {"n_seeds": 0}, {"no_such_setting": 1}])
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        BenchmarkSettings(**settings)


def test_a_model_of_another_context_or_without_bos() -> None:
    training = BenchmarkSettings(context_size=48, prepend_bos=False).training(OURS, 0)
    assert (training.context_size, training.batch_size_tokens, training.prepend_bos) == (48, 480, False)
    usual = BenchmarkSettings().training(OURS, 0)
    assert (usual.context_size, usual.batch_size_tokens, usual.prepend_bos) == (128, 512, True)


def test_saes_are_trained_from_the_given_cache(tmp_path: Path) -> None:
    assert BenchmarkSettings(cache=tmp_path).training(OURS, 0).cache == tmp_path
    assert BenchmarkSettings().training(OURS, 0).cache is None


def test_a_reference_that_cannot_be_compared_is_refused_before_any_work(
    tmp_path: Path, tiny_model_dir: Path, save_neox: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "run_trials_by_settings", lambda *_, **__: pytest.fail("it went to work"))
    wide = save_neox(tmp_path / "wide", vocab_size=4224)
    given = {"model": str(tiny_model_dir), "forget": "kjv", "retain": ("sotu",), "context_size": 32, "out": tmp_path / "out"}
    with pytest.raises(
        ModelError, match=r"expected wide to have 4,096 logits like .*, got 4,224.*'reference: null' into a --config file"
    ):
        run_benchmark(BenchmarkSettings(**given, reference=str(wide)))


def test_a_transcoder_between_hooks_in_the_other_order_is_refused_before_any_work(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "run_trials_by_settings", lambda *_, **__: pytest.fail("it went to work"))
    turned = {
        "hook_name": "blocks.1.hook_resid_pre",
        "hook_name_out": "blocks.0.hook_attn_out",
        "architecture": "mtsae_transcoder",
    }
    given = {"model": str(tiny_model_dir), "reference": None, "forget": "kjv", "retain": ("sotu",), "context_size": 32}
    with pytest.raises(ModelError, match="decodes a later hook than it reads"):
        run_benchmark(BenchmarkSettings(**given, saes={"turned": turned}, out=tmp_path / "out"))


def test_a_task_of_ones_own_replaces_the_named_ones() -> None:
    assert BenchmarkSettings().benchmark_tasks() == dict(TASKS)
    assert list(BenchmarkSettings(tasks=("people",)).benchmark_tasks()) == ["people"]
    (own,) = (
        BenchmarkSettings(forget="kjv", near=("milton",), retain=("sotu", "austen"), neutral=("jargon",))
        .benchmark_tasks()
        .values()
    )
    task = own.task(3)
    assert [task.sources(role) for role in ("forget", "near", "far", "neutral")] == [  # type: ignore[arg-type]
        ["kjv"],
        ["milton"],
        ["sotu", "austen"],
        ["jargon"],
    ]
    assert (own.forget_training, own.retain_training) == ("kjv", ("milton", "sotu", "austen"))


def test_the_scale_is_what_is_given_on_top_of_the_preset() -> None:
    assert BenchmarkSettings().size() == BenchmarkSize()
    quick = BenchmarkSettings(quick=True, d_sae=64, n_seeds=4)
    assert quick.size().d_sae == 64
    assert quick.size().contexts_per_split == QUICK.contexts_per_split
    assert list(quick.seeds()) == [0, 1, 2, 3]
    assert list(BenchmarkSettings(quick=True).seeds()) == [0]
    assert list(BenchmarkSettings(n_seeds=2).seeds()) == [0, 1]


def test_sources_are_checked_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "run_trials_by_settings", lambda *args, **kwargs: pytest.fail("work began"))
    for sources in ({"retain": ("no-such-text",)}, {"retain": ("facts:retain:knwn",)}, {"retain": ()}):
        with pytest.raises(DataError):
            module.run_benchmark(BenchmarkSettings(out=tmp_path / "out", forget="kjv", **sources))


def test_questions_that_do_not_fit_are_refused_before_anything_is_trained(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class BeganError(Exception):
        pass

    def work(*_: Any, **__: Any) -> None:
        raise BeganError

    monkeypatch.setattr(module, "run_trials_by_settings", work)
    given = {"model": str(tiny_model_dir), "reference": None, "retain": ("sotu",), "out": tmp_path / "out"}

    def run(context_size: int, n_attacked_seeds: int, forget: str = "facts:forget:known", **others: Any) -> None:
        made = given | others | {"forget": forget, "context_size": context_size, "n_attacked_seeds": n_attacked_seeds}
        run_benchmark(BenchmarkSettings(**made))

    with pytest.raises(DataError, match="expected questions of at most 4 tokens, got ") as raised:
        run(4, 1)
    longest = int(str(raised.value).rpartition("context_size=")[2].split()[0])
    with pytest.raises(
        ConfigError, match=rf"expected a context_size of at least {longest + 1}, .*, got {longest}; give --context-size"
    ):
        run(longest, 1)
    for allowed in ((longest, 0), (longest + 1, 1)):
        with pytest.raises(BeganError):
            run(*allowed)
    for source, role in (("retain/9", "near"), ("retain/9", "retain"), ("strangers/9", "neutral")):
        others = {role: ("sotu", f"facts:{source}:known") if role == "retain" else (f"facts:{source}:known",)}
        with pytest.raises(DataError, match=f"facts:{source}:known: expected questions of at most 4 tokens, got "):
            run(4, 1, "kjv", **others)
        with pytest.raises(BeganError):
            run(longest + 1, 1, "kjv", **others)


def test_all_saes_are_trained_alike(tmp_path: Path) -> None:
    settings = BenchmarkSettings(out=tmp_path, training_tokens=7_000, d_sae=99)
    trained = [settings.training(name, 3).model_dump(exclude={"architecture", "sae", "out"}) for name in settings.saes]
    assert all(one == trained[0] for one in trained)
    assert (trained[0]["d_sae"], trained[0]["training_tokens"], trained[0]["seed"]) == (99, 7_000, 3)


OWN = BenchmarkTask("own", (Corpus("f", "forget"), Corpus("n", "near"), Corpus("x", "far")), "f", ("n", "x"))


def corpus(delta: float) -> dict[str, Any]:
    asked = {"n_contexts": 4, "exact_recall": 0.25}
    documents = [{"document": str(i), "n_tokens": 2, "nll_clean": 3.0, "nll_edited": 3.0 + delta} | asked for i in range(3)]
    return {"documents": documents, "nll_delta": delta, "nll_clean": 3.0}


def method(forget: float, budgets: tuple[str, ...] = ("0.05", "0.05 goal")) -> dict[str, Any]:
    row = {"setting": {}, "corpora": {"f": corpus(forget), "n": corpus(0.04), "x": corpus(0.01)}}
    random = {"f": {"documents": [{"document": str(i), "n_tokens": 2, "nll_delta": 0.1} for i in range(3)]}}
    return {"tune": [], "test": {budget: row | {"random": random} for budget in budgets}}


def attacked(nll: float) -> dict[str, Any]:
    row = {"nll": nll, "nll_clean": 3.0, "exact_recall": 0.5}
    steps = ((0, 0.2), (5, 0.8), (20, 0.5))  # the attack goes past its best
    points = [{"step": step} | row | {"nll": nll - recall, "exact_recall": recall} for step, recall in steps]
    return {
        "relearning": {"hook in place": {"4": points[:1], "16": points}, "half of the people": {"others": points}},
        "dilution": row | {"nll": 3.456},
        "quantisation": {"8": row, "4": row | {"nll": 4.567}},
    }


def full(method: dict[str, Any], nll: float) -> dict[str, Any]:
    separation = {"by_position": [{"auroc": 0.987}]}
    main = {
        "calibrated_nll_delta": 0.777,
        "gate": {"true_positives": {"positions": 0.66}, "others": {"n": separation, "x": {"by_position": [{"auroc": 0.1}]}}},
        "reference": {"nll_gap": -0.123, "documents": {"ks": 0.31}, "kl": 1.234},
        "generation": {"f": {"clean": {"distinct_2": 0.9, "repeated": 0.1}, "edited": {"distinct_2": 0.8, "repeated": 0.2}}},
        "samples": {"f": [{"prompt": "In the beginning", "clean": "was", "edited": "<b>sea</b>"}]},
    }
    return method | {"main": main, "attacks": attacked(nll)}


def cells() -> dict[str, Any]:
    return {
        f"own/{OURS}/0": {"methods": {OURS: full(method(1.0), 4.0), f"{OURS}, no gate": method(0.2)}},
        "own/topk/0": {"methods": {"topk": method(0.6)}},
        "own/npo/0": {"methods": {"npo": method(5.0)}},
        "own/reference": {
            "corpora": {"f": corpus(2.5)},
            "attacks": attacked(5.5),
            "main": {"calibrated_nll_delta": 2.222, "generation": {}},
            "untouched": {"calibrated_nll_delta": 0.0, "generation": {}},
        },
        f"own/{OURS}/1": {"methods": {OURS: method(3.0), f"{OURS}, no gate": method(0.0, ())}},
        "own/topk/1": {"methods": {"topk": method(1.0, ("0.05", "0.05 goal", "0.1"))}},
        "own/npo/1": {"methods": {"npo": method(7.0)}},
        f"own/stability/{OURS}-2": {
            "stability": {"frequency_difference": {"n_features": 8, "halves": 0.5, "chance": 0.004, "seeds": None}}
        },
        "owner/topk/0": {"methods": {"topk": method(99.0)}},  # another task
    }


def read(cells: dict[str, Any]) -> dict[str, Cell]:
    """Read a cell whose missing values are zero or absent."""
    kinds: dict[str, type[Cell]] = {"reference": ReferenceCell, "stability": StabilityCell}
    return {name: filled(kinds.get(name.split("/")[1], MethodsCell), cell) for name, cell in cells.items()}


TRAINED = {
    f"{OURS}/0": {"l0": 30.0, "explained_variance": 0.5},
    f"{OURS}/1": {"l0": 34.0, "explained_variance": 0.7},
    "topk/0": {"l0": 31.0, "explained_variance": 0.8},
}


def summarize(
    made: dict[str, Any], task: BenchmarkTask, architectures: list[str]
) -> tuple[dict[str, Any], BenchmarkResult, BenchmarkReport]:
    """Return the JSON, the record and the report of cells made by hand."""
    of_task = TaskResults(task.name, task.task(1), read(made), architectures)
    result = BenchmarkResult(saes=TRAINED, seconds_of_cells=3.5, tasks={task.name: of_task.comparison()})
    return (
        result.to_json(),
        result,
        report_benchmark(result, [of_task], dict.fromkeys(architectures, "blocks.1.hook_resid_post")),
    )


def test_numbers_and_page_of_cells_made_by_hand(tmp_path: Path) -> None:
    metrics, result, report = summarize(cells(), OWN, [OURS, "topk"])
    assert list(metrics) == ["saes", "seconds_of_cells", "own"]
    written = json.loads(json.dumps(metrics | {"provenance": {"seed": 0}}, allow_nan=False))
    assert BenchmarkResult.from_json(written) == result
    assert metrics["saes"] == TRAINED
    found = metrics["own"]
    assert list(found) == ["at_cost", "differences", "main", "attacks", "reference", "stability"]
    at_cost = found["at_cost"]
    means = {name: {b: round(row["forget"]["mean"], 6) for b, row in rows.items()} for name, rows in at_cost.items()}
    assert means == {
        OURS: {"0.05 goal": 2.0, "0.05": 2.0},
        "topk": {"0.05 goal": 0.8, "0.05": 0.8, "0.1": 1.0},
        f"{OURS}, no gate": {"0.05 goal": 0.2, "0.05": 0.2},
        "npo": {"0.05 goal": 6.0, "0.05": 6.0},
    }
    assert at_cost[f"{OURS}, no gate"]["0.05"]["n_missing"] == at_cost["topk"]["0.1"]["n_missing"] == 1
    assert at_cost[OURS]["0.05"]["near"]["mean"] == pytest.approx(0.04)
    assert at_cost[OURS]["0.05"]["random"]["mean"] == pytest.approx(0.1)
    assert {other: {b: round(d["mean"], 6) for b, d in rows.items()} for other, rows in found["differences"].items()} == {
        "topk": {"0.05 goal": 1.2, "0.05": 1.2}
    }
    assert list(found["main"]) == list(found["attacks"]) == [OURS]
    assert found["reference"]["corpora"]["f"]["nll_delta"] == 2.5

    headline, table = report.tables
    assert (headline, report.sections[0].title) == (
        report.sections[0].table,
        "own: forgotten, at what cost, and what came back",
    )
    (said,) = report.summary
    for part in (
        f"own: editing features of {OURS} adds +2.000 [",
        "on f, where a model that never saw the text has +2.500, at a cost of +0.040 [",
        "on near text and +0.010 [",
        "seeds: 2; within 0.05 on TUNE). Matched random features behind the same gate add +0.100. ",
        "Relearning (half of the people, asked about the others; seed 0) brings back 75% of the forgetting. ",
        f"Of 4 methods, {OURS} comes nearest to the reference (-0.500 nats from it).",
    ):
        assert part in said
    rows = {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}
    assert list(rows) == [OURS, "topk", f"{OURS}, no gate", "npo"]
    assert not any("recall" in name for name in table.header)  # a text, not questions
    assert rows[OURS]["forget at 0.05"].startswith("+2.000 [")
    assert rows[OURS]["forget at 0.02"] is None
    assert rows[OURS]["random at 0.05"] == "+0.100 (20.0x)"
    assert rows[OURS]["beyond random at 0.05"].startswith("+1.900 [")
    assert rows[OURS]["gap at 0.05"].startswith("-0.500 [")
    assert rows["topk"]["forget at 0.1"] is None  # read as the most, not as the nearest
    assert {name: row["seeds with no setting"] for name, row in rows.items()} == {
        name: int(name == f"{OURS}, no gate") for name in rows
    }

    sections = {section.title: section for section in report.sections}
    assert "never saw the text, has +2.500 nats" in sections["own: nearest to the reference within each budget"].text
    saes = sections["The SAEs"].table
    assert saes is not None
    assert saes.rows[0] == [OURS, "blocks.1.hook_resid_post", 32.0, pytest.approx(0.6), None, None, 2]
    main = sections["own: similarity to the reference"].table
    assert main is not None
    assert [row[:5] for row in main.rows[:2]] == [
        ["untouched", None, None, None, "+0.000"],
        ["reference", None, None, None, "+2.222"],
    ]
    generated = ["0.90 -> 0.80", "0.10 -> 0.20", None]
    assert list(main.rows[2]) == [OURS, "-0.123", "0.31", "1.234", "+0.777", "66%", "0.987", *generated]
    attacks = sections["own: attacks"].table
    assert attacks is not None
    assert [row[:6] for row in attacks.rows] == [
        [OURS, "3.800", "4.567", "4.000", "3.456", "3.000"],
        ["reference", "5.300", "4.567", "5.500", "3.456", "3.000"],
    ]
    relearning = sections["own: relearning"].table
    assert relearning is not None
    assert relearning.header[2:6] == ["before", "4 documents", "16 documents", "one half, asked about the others"]
    assert list(relearning.rows[0]) == [OURS, "hook in place", "3.800", "3.800", "3.200", None, "80%"]
    assert list(relearning.rows[1]) == [OURS, "half of the people", "3.800", None, None, "3.200", "80%"]
    assert "fills 50% of the context" in sections["own: attacks"].text

    difference = sections[f"own: {OURS} minus every other SAE"].table
    assert difference is not None
    assert difference.header == ["SAE", "nearest to the reference at 0.05", "the most at 0.05", "seeds"]
    assert [str(cell)[:6] for cell in difference.rows[0]] == ["topk", "+1.200", "+1.200", "2"]

    where = sections["own: cost on every other text"].table
    assert where is not None
    assert where.header == ["method", "n (near)", "x (far)"]
    assert [str(cell)[:6] for cell in where.rows[0]] == [OURS, "+0.040", "+0.010"]
    stability = sections["own: stability of the choice"].table
    assert stability is not None
    assert list(stability.rows[0]) == [OURS, "frequency_difference", 8, "0.50", "0.004", None, None]

    write_report(tmp_path, "Unlearning, compared", "lead", report.sections, {})
    page = (tmp_path / "report.html").read_text()
    for text in ("own: the most loss within each budget", "own: attacks", "0.987", "In the beginning", "&lt;b&gt;sea"):
        assert text in page


def test_questions_show_recall_and_a_task_without_near_text_shows_none() -> None:
    asked = BenchmarkTask("own", (Corpus("facts:forget:known", "forget"), Corpus("x", "far")), "facts:forget:known", ("x",))
    result = method(1.0, ("0.05",))
    corpora = result["test"]["0.05"]["corpora"]
    del result["test"]["0.05"]["random"], corpora["n"]
    corpora["facts:forget:known"] = corpora.pop("f")
    metrics, _, report = summarize({f"own/{OURS}/0": {"methods": {OURS: result}}}, asked, [OURS, "topk"])
    _, table = report.tables
    (row,) = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    assert (row["recall at 0.05"], row["near at 0.05"], row["random at 0.05"]) == ("25% [25%, 25%]", None, None)
    assert metrics["own"]["differences"] == {}
    assert metrics["own"]["reference"] is None
    assert "seeds with no setting" not in table.header
    titles = [section.title for section in report.sections]
    assert "own: attacks" not in titles
    assert "own: similarity to the reference" not in titles
