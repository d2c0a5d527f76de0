"""Several ranks explore what one process explores, and only the first of them writes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from several_ranks import on_ranks
from torch.testing import assert_close

from mtsae_lens.commands.explore import run_explore
from mtsae_lens.commands.explore_settings import ExploreSettings
from mtsae_lens.errors import TrainingInterrupted
from mtsae_lens.exploration import explore as module
from mtsae_lens.exploration.corpora import Corpora
from mtsae_lens.exploration.example_lists import ExampleList
from mtsae_lens.exploration.example_table import collect_example_rows
from mtsae_lens.exploration.explore import explore
from mtsae_lens.exploration.firings import find_firings
from mtsae_lens.exploration.plan import Plan
from mtsae_lens.exploration.survey import Survey
from mtsae_lens.ranks import current_ranks

PLAN = Plan(
    n_examples=3, n_sampled=2, before=5, after=2, n_ablated=2, n_attributed=1, n_attribution_contexts=4, n_text_contexts=3
)


@pytest.mark.parametrize("architecture", ["mtsae", "topk"])
def test_merged_surveys_are_one_survey(look: Any, random_lm: Any, corpora: Corpora, architecture: str) -> None:
    lm = random_lm(architecture)
    whole = look(lm, corpora)
    first = Survey(lm, whole.plan, 2, 1)
    batches = list(corpora.batches(4))
    first.add(batches[0])
    second, third = first.emptied(), first.emptied()
    for survey, own in ((first, batches[3:4]), (second, batches[4:]), (third, batches[1:3])):
        for batch in own:
            survey.add(batch)
    first.merge(second)  # not in the order of the text
    first.merge(third)
    assert first.n_batches == whole.n_batches
    for field in dataclasses.fields(whole.counts):
        merged, expected = getattr(first.counts, field.name), getattr(whole.counts, field.name)
        assert_close(merged, expected, rtol=1e-12 if field.name == "total" else 0, atol=0)
    everything = torch.arange(24)
    rows, expected_rows = (collect_example_rows(survey, everything) for survey in (first, whole))
    assert len(rows.feature) > 60
    for name, tensor in expected_rows.fields.items():
        if name != "row":  # in which order rows were laid out
            assert torch.equal(rows.fields[name].nan_to_num(), tensor.nan_to_num()), name
    for found, expected in zip(first.cofiring.strongest(24, 8), whole.cofiring.strongest(24, 8), strict=True):
        assert torch.equal(found.nan_to_num(), expected.nan_to_num())
    if whole.lift is not None:
        assert first.lift is not None
        assert_close(first.lift.by_pair, whole.lift.by_pair)
    whole._forget()
    assert first.held.keys() == whole.held.keys()


def contexts_of(examples: ExampleList, acts: torch.Tensor, batches: list[list[int]]) -> ExampleList:
    for batch in batches:
        firings = find_firings(acts[batch])
        entries = examples.admit(firings, firings.value, len(batch), 0, batch[0])
        rows = examples.rows_of(entries.feature, entries.slot)
        examples.activations[rows] = 1.0
    return examples


def test_of_equal_keys_the_earlier_contexts_are_kept() -> None:
    """However the contexts were divided into batches, and whichever list was merged into the other."""
    acts = torch.ones(40, 3, 50)
    empty = ExampleList.empty(50, 3, Plan(before=0, after=0), 0, 0)
    parts = [[*range(0, 20)], [20, 21], [*range(22, 40)]]
    early, late = contexts_of(empty.emptied(), acts, parts[:1]), contexts_of(empty.emptied(), acts, parts[1:])
    late.merge(early)
    for examples in (contexts_of(empty.emptied(), acts, parts), contexts_of(empty, acts, [[n] for n in range(40)]), late):
        assert examples.context.gather(1, examples.order(0)).tolist() == [[0, 1, 2]] * 50


def run(lm: Any, corpora: Corpora, out: Path) -> dict[str, Any]:
    return explore(lm, corpora, out, PLAN, settings={"k": 1}, about=lambda seconds: {"sae": "x"})


@pytest.fixture(scope="module")
def lm_3(random_lm: Callable[..., Any]) -> Any:
    """A model with batches of three contexts, so that the text has eight batches, which three ranks cannot divide evenly."""
    return dataclasses.replace(random_lm("mtsae"), batch_size=3)


@pytest.fixture(scope="module")
def alone(lm_3: Any, corpora: Corpora, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "out"
    run(lm_3, corpora, out)
    return out


def check_equal(out: Path, expected: Path) -> None:
    """Examples and texts are equal, and features up to the rounding of sums."""
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in expected.iterdir())
    for name in ("examples", "texts"):
        rows, expected_rows = (pq.read_table(folder / f"{name}.parquet").to_pylist() for folder in (out, expected))
        assert len(rows) > 3
        assert json.dumps(rows) == json.dumps(expected_rows)
    table, expected_table = (pq.read_table(folder / "features.parquet") for folder in (out, expected))
    assert table.schema == expected_table.schema
    for name in table.column_names:
        found, wanted = (each[name].combine_chunks() for each in (table, expected_table))
        if pa.types.is_list(found.type):
            assert found.value_lengths() == wanted.value_lengths(), name
            found, wanted = found.flatten(), wanted.flatten()
        if pa.types.is_floating(found.type):  # what is missing becomes NaN
            numbers, expected_numbers = (each.to_numpy(zero_copy_only=False) for each in (found, wanted))
            np.testing.assert_allclose(numbers, expected_numbers, rtol=1e-5, atol=1e-7, err_msg=name)
        else:
            assert found == wanted, name
    about, expected_about = (json.loads((folder / "explore.json").read_text()) for folder in (out, expected))
    assert about == expected_about


@pytest.mark.parametrize(("n", "saves_often"), [(2, False), (3, True)])
def test_ranks_explore_what_one_process_explores(
    n: int, saves_often: bool, lm_3: Any, corpora: Corpora, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if saves_often:
        monkeypatch.setattr(module, "_SAVE_EVERY_SECONDS", 0.0)
    read: list[int] = []
    add = Survey.add

    def counted(survey: Survey, batch: Any) -> None:
        read.append(batch.number)
        add(survey, batch)

    def work() -> None:
        content = run(lm_3, corpora, tmp_path / "out")
        (tmp_path / f"rank{current_ranks().rank}").write_text(json.dumps([read, content["n_tokens"]]))

    monkeypatch.setattr(Survey, "add", counted)
    assert on_ranks(n, tmp_path / "ranks", work) == [(0, "")] * n
    check_equal(tmp_path / "out", alone)
    told = [json.loads((tmp_path / f"rank{rank}").read_text()) for rank in range(n)]
    assert [batches for batches, _ in told] == [list(range(rank, 8, n)) for rank in range(n)]
    assert len({n_tokens for _, n_tokens in told}) == 1


def test_the_comparison_can_fail(lm_3: Any, corpora: Corpora, alone: Path, tmp_path: Path) -> None:
    run(lm_3, dataclasses.replace(corpora, seed=1), tmp_path / "out")
    with pytest.raises(AssertionError):
        check_equal(tmp_path / "out", alone)


def at_batch(number: int, act: Callable[[], Any]) -> None:
    """Let the rank that reads the batch of this number do something."""
    add = Survey.add

    def added(survey: Survey, batch: Any) -> None:
        add(survey, batch)
        if batch.number == number:
            act()

    Survey.add = added  # type: ignore[method-assign]  # in a fork


@pytest.mark.parametrize("batch", [2, 7], ids=["first rank", "other rank, last batch"])
def test_a_stopped_exploration_is_resumed_by_any_number_of_ranks(
    batch: int, lm_3: Any, corpora: Corpora, alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def work() -> None:
        at_batch(batch, lambda: signal.raise_signal(signal.SIGTERM))
        run(lm_3, corpora, out)

    first, second = on_ranks(2, tmp_path / "ranks", work)
    assert first[0] == 2
    assert first[1].startswith(f"finished work is kept in {out / 'state'}")
    assert second == (128 + signal.SIGTERM, "")
    assert [path.name for path in (out / "state").iterdir()] == ["survey.safetensors"]
    for n in (1, 3):
        copied = tmp_path / f"resumed{n}"
        shutil.copytree(out, copied)
        if n == 1:
            run(lm_3, corpora, copied)
        else:
            assert on_ranks(n, tmp_path / f"ranks{n}", lambda: run(lm_3, corpora, copied)) == [(0, "")] * n  # noqa: B023
        check_equal(copied, alone)


def test_an_exploration_of_one_process_goes_on_with_ranks(
    lm_3: Any, corpora: Corpora, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Survey.add

    def stopped(survey: Survey, batch: Any) -> None:
        add(survey, batch)
        if batch.number == 2:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Survey, "add", stopped)
        with pytest.raises(TrainingInterrupted):
            run(lm_3, corpora, tmp_path / "out")
    assert on_ranks(2, tmp_path / "ranks", lambda: run(lm_3, corpora, tmp_path / "out")) == [(0, "")] * 2
    check_equal(tmp_path / "out", alone)


def test_a_rank_that_is_killed_ends_the_exploration_with_one_message(
    lm_3: Any, corpora: Corpora, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SAVE_EVERY_SECONDS", 0.0)
    out = tmp_path / "out"

    def work() -> None:
        at_batch(5, lambda: os.kill(os.getpid(), signal.SIGKILL))
        run(lm_3, corpora, out)

    first, second = on_ranks(2, tmp_path / "ranks", work)
    assert second[0] == -signal.SIGKILL
    assert first[0] == 2
    assert first[1].startswith("a rank ended before the others")
    assert "\n" not in first[1]
    assert (out / "state" / "survey.safetensors").exists()
    assert on_ranks(3, tmp_path / "again", lambda: run(lm_3, corpora, out)) == [(0, "")] * 3
    check_equal(out, alone)


def test_a_slow_first_rank_does_not_delete_what_the_next_save_wrote(
    lm_3: Any, corpora: Corpora, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last round is saved twice: as a round, and as the end of the text."""
    monkeypatch.setattr(module, "_SAVE_EVERY_SECONDS", -1.0)

    def work() -> None:
        unlink = Path.unlink

        def slow(path: Path, *args: Any, **options: Any) -> None:
            time.sleep(0.3)
            unlink(path, *args, **options)

        Path.unlink = slow  # type: ignore[method-assign]  # in a fork
        run(lm_3, corpora, tmp_path / "out")

    assert on_ranks(2, tmp_path / "ranks", work) == [(0, "")] * 2
    check_equal(tmp_path / "out", alone)


def test_the_first_rank_writes_the_page(tiny_sae_dir: Path, sources: tuple[str, str], tmp_path: Path) -> None:
    settings = ExploreSettings(
        sae=tiny_sae_dir, out=tmp_path / "out", dataset=sources, n_tokens=640, n_examples=2, n_ablated=1, n_attributed=1
    )

    def work() -> None:
        facts, page = run_explore(settings)
        assert page == settings.out / "index.html"
        assert page.exists()
        assert facts == run_explore(settings)[0]  # which reads the facts that are there

    assert on_ranks(2, tmp_path / "ranks", work) == [(0, "")] * 2
