"""Test the folder of facts: complete, identical after an interruption, and refused for other settings."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from mtsae_lens.errors import ConfigError, DataError, TrainingInterrupted
from mtsae_lens.exploration import explore as module
from mtsae_lens.exploration.corpora import Corpora
from mtsae_lens.exploration.explore import explore
from mtsae_lens.exploration.feature_table import _firing_columns
from mtsae_lens.exploration.plan import Plan
from mtsae_lens.exploration.survey import Survey
from mtsae_lens.facts.columns import parquet_schema
from mtsae_lens.facts.exploration import Exploration
from mtsae_lens.facts.records import Example, FeatureFacts, TextFacts
from mtsae_lens.sae.memory import impulse_response
from mtsae_lens.splice.attribution import attribution

PLAN = Plan(
    n_examples=3, n_sampled=2, before=5, after=2, n_ablated=2, n_attributed=1, n_attribution_contexts=4, n_text_contexts=3
)
TABLES = ("features", "examples", "texts")


def run(lm: Any, corpora: Corpora, out: Path, **settings: Any) -> dict[str, Any]:
    return explore(lm, corpora, out, PLAN, settings={"k": 1} | settings, about=lambda seconds: {"sae": "x"})


@pytest.fixture(scope="module")
def made(random_lm: Any, corpora: Corpora, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exploration]:
    """Facts of an MTSAE and of a TopK SAE."""
    folder = tmp_path_factory.mktemp("facts")
    for architecture in ("mtsae", "topk"):
        run(random_lm(architecture), corpora, folder / architecture)
    return {name: Exploration.open(folder / name) for name in ("mtsae", "topk")}


def test_the_folder(made: dict[str, Exploration]) -> None:
    for facts in made.values():
        assert {path.name for path in facts.folder.iterdir()} == {
            "SHA256SUMS",
            "explore.json",
            "settings.json",
            *(f"{t}.parquet" for t in TABLES),
        }
        for name, record in zip(TABLES, (FeatureFacts, Example, TextFacts), strict=True):
            assert pq.read_schema(facts.folder / f"{name}.parquet").equals(parquet_schema(record))
        about = facts.about
        assert about["format"] == "mtsae-exploration-1"
        assert about["n_tokens"] == sum(corpus["n_tokens"] for corpus in about["corpora"])
        assert len(about["histogram_edges"]) == len(facts.feature(0).histogram) + 1
        assert facts.features["feature"].tolist() == list(range(24))


def test_an_mtsae_has_time_scales_and_a_topk_sae_has_none(made: dict[str, Exploration]) -> None:
    temporal, pointwise = made["mtsae"], made["topk"]
    assert temporal.about["dilations"] == [0, 1, 2, 4, 8]
    assert temporal.about["offsets"] == [0, -1, -2, -4, -8, -16]
    assert (pointwise.about["dilations"], pointwise.about["offsets"]) == ([], [0])
    alive = 0
    for feature in range(24):
        one, other = temporal.feature(feature), pointwise.feature(feature)
        assert (other.scale_shares, other.kernel, other.main_dilation, other.context_share) == ((), (), None, None)
        if one.scale_shares:
            alive += 1
            assert sum(one.scale_shares) == pytest.approx(1, abs=1e-5)
            assert sum(one.kernel) == pytest.approx(1, abs=1e-5)
            assert one.main_dilation == temporal.about["dilations"][one.scale_shares.index(max(one.scale_shares))]
        for example in temporal.examples(feature):
            for parts in (example.scale_contributions, example.offset_contributions):
                assert sum(parts) + (example.bias or 0) == pytest.approx(example.hidden_pre, abs=1e-5)
            assert len(example.token_scale_contributions) == 5 * len(example.tokens)
        for example in pointwise.examples(feature):
            assert (example.scale_contributions, example.token_scale_contributions) == ((), ())
            assert example.hidden_pre == pytest.approx(example.activations[example.peak])
    assert alive > 10


def test_memory_of_the_decoder_is_described(
    random_lm: Any, corpora: Corpora, made: dict[str, Exploration], tmp_path: Path
) -> None:
    lm = random_lm(memory="predictive", memory_rank=8)
    run(lm, corpora, tmp_path)
    facts = Exploration.open(tmp_path)
    lags = facts.about["impulse_lags"]
    assert lags[:2] == [1, 2]
    responses = impulse_response(lm.sae, torch.arange(24), lags[-1] + 1).norm(dim=-1)
    for feature in range(24):
        row = facts.feature(feature)
        assert row.impulse_response == pytest.approx((responses[feature, lags] / responses[feature, 0]).tolist(), rel=1e-4)
        assert row.carried_over == row.impulse_response[0]
    whole, new = [], []
    for table in corpora.tables(PLAN.n_text_contexts):
        acts = lm.feature_acts(table.tokens)
        active = (acts != 0).any(dim=-1)
        whole.append((lm.sae.decode(acts) - lm.sae.b_dec)[active].detach())
        new.append((acts @ lm.sae.W_dec)[active].detach())
    r, coded = torch.cat(whole), torch.cat(new)
    expected = 1 - coded.pow(2).sum() / (r - r.mean(dim=0)).pow(2).sum()
    assert facts.about["carried_variance"] == pytest.approx(float(expected), rel=1e-3)
    without = made["mtsae"]
    assert (without.about["impulse_lags"], without.about["carried_variance"]) == ([], None)
    assert (without.feature(0).carried_over, without.feature(0).impulse_response) == (None, ())


def test_the_persistence_of_the_list_is_that_of_the_next_token(made: dict[str, Exploration]) -> None:
    for facts in made.values():
        for feature in range(24):
            row = facts.feature(feature)
            assert row.next_persistence == (row.persistence[0] if row.persistence else None)
            assert row.next_persistence_control is None or 0 <= row.next_persistence_control <= 1
        assert any(facts.feature(feature).next_persistence_control for feature in range(24))


def test_examples(made: dict[str, Exploration], corpora: Corpora, tokenizer: Any) -> None:
    texts = [[tokenizer.decode([i]) for i in ids] for corpus in range(2) for _, ids in corpora.contexts(corpus)]
    for facts in made.values():
        rows = pq.read_table(facts.folder / "examples.parquet")
        order = [(r["feature"], ("top", "sampled").index(r["kind"]), r["rank"]) for r in rows.to_pylist()]
        assert order == sorted(order)
        assert len(set(order)) == len(order)
        for feature in range(24):
            facts_of, examples = facts.feature(feature), facts.examples(feature)
            assert bool(examples) == (facts_of.n_active > 0)
            top = facts.examples(feature, "top")
            peaks = [example.activations[example.peak] for example in top]
            assert peaks == sorted(peaks, reverse=True)
            if top:
                assert peaks[0] == pytest.approx(facts_of.max_activation)
                assert facts_of.top_token in {example.tokens[example.peak] for example in top}
                assert [bool(example.model_attribution) for example in top] == [True] + [False] * (len(top) - 1)
                assert len(top[0].model_attribution) == len(top[0].tokens)
            else:
                assert (facts_of.top_token, facts_of.mean_activation, facts_of.persistence) == (None, None, ())
            for example in examples:
                assert len(example.tokens) == len(example.activations)
                start = example.position - example.peak
                assert list(example.tokens) in [text[start : start + len(example.tokens)] for text in texts]


def test_effects_in_the_table(made: dict[str, Exploration], random_lm: Any, corpora: Corpora) -> None:
    facts, lm = made["mtsae"], random_lm("mtsae")
    tables = corpora.tables(4)
    assert [len(table) for table in tables] == [2, 2]
    joined = dataclasses.replace(tables[0], tokens=torch.cat([t.tokens for t in tables]), documents=("",) * 4)
    assert facts.features["attribution"].tolist() == pytest.approx(attribution(lm, joined).tolist(), rel=1e-5)
    measured = facts.features["n_ablated"]
    assert set(measured) <= {0, 1, 2}
    assert facts.features["ablation_next_nll"].notna().sum() > 5
    assert (facts.features["ablation_rest_nll"].isna() >= (measured == 0)).all()


def test_texts(made: dict[str, Exploration], random_lm: Any, corpora: Corpora) -> None:
    lm = random_lm("mtsae")
    rows = pq.read_table(made["mtsae"].folder / "texts.parquet").to_pylist()
    assert [row["corpus"] for row in rows] == [0, 0, 1, 1]  # as many of each corpus
    tokens = torch.tensor([next(corpora.contexts(1))[1]])
    acts, row = lm.feature_acts(tokens)[0], rows[2]
    for position in range(32):
        values, features = acts[position].topk(5)
        n = int((values > 0).sum())
        assert row["features"][position] == features[:n].tolist()
        assert row["activations"][position] == pytest.approx(values[:n].tolist(), rel=1e-4)
    losses = lm.model(tokens, return_type="loss", loss_per_token=True, prepend_bos=False)[0]
    assert row["nll"][0] is None
    assert row["nll"][1:] == pytest.approx(losses.tolist(), abs=1e-4)


def contents(folder: Path) -> list[Any]:
    return [pq.read_table(folder / f"{name}.parquet").to_pylist() for name in TABLES]


def same(first: Any, second: Any) -> bool:
    """Equality in which NaN equals NaN."""
    return json.dumps(first) == json.dumps(second)


def test_stopped_at_any_step_and_carried_on(
    made: dict[str, Exploration], random_lm: Any, corpora: Corpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal after every other step of the work, until it is done: the facts are those of a run in one go."""
    lm = random_lm("mtsae")
    original_add, original_kept = Survey.add, module._kept

    def interrupted_add(self: Survey, batch: Any) -> None:
        original_add(self, batch)
        if self.n_batches == 3:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Survey, "add", interrupted_add)
    with pytest.raises(TrainingInterrupted, match="same command to resume"):
        run(lm, corpora, tmp_path / "out")
    monkeypatch.setattr(Survey, "add", original_add)
    assert [path.name for path in (tmp_path / "out" / "state").iterdir()] == ["survey.safetensors"]
    steps: set[int] = set()

    def interrupted(state: Path, name: str, compute: Any) -> Any:
        done = len(list(state.iterdir()))
        if done not in steps:  # once after each result that is kept
            steps.add(done)
            signal.raise_signal(signal.SIGINT)
        return original_kept(state, name, compute)

    monkeypatch.setattr(module, "_kept", interrupted)
    for n_results in (1, 2, 3):
        with pytest.raises(TrainingInterrupted) as stop:
            run(lm, corpora, tmp_path / "out")
        assert stop.value.signal_number == signal.SIGINT
        assert len(list((tmp_path / "out" / "state").iterdir())) == n_results
        assert not (tmp_path / "out" / "explore.json").exists()
    run(lm, corpora, tmp_path / "out")
    assert same(contents(tmp_path / "out"), contents(made["mtsae"].folder))


def test_killed_while_writing(
    made: dict[str, Exploration], random_lm: Any, corpora: Corpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file is incomplete, and the same call finishes without reading the text again."""
    lm = random_lm("mtsae")

    def fail(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pyarrow.parquet.ParquetWriter.write_table", fail)
        with pytest.raises(TrainingInterrupted, match="same command to resume"):
            run(lm, corpora, tmp_path)
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(DataError, match=r"no explore\.json; give the --out folder of a finished `mtsae explore`"):
        Exploration.open(tmp_path)
    monkeypatch.setattr(Survey, "add", fail)
    run(lm, corpora, tmp_path)
    assert same(contents(tmp_path), contents(made["mtsae"].folder))


def test_a_finished_folder_is_left_as_it_is(made: dict[str, Exploration], random_lm: Any, corpora: Corpora) -> None:
    folder = made["mtsae"].folder
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert run(random_lm("mtsae"), corpora, folder) == made["mtsae"].about
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    (folder / "state").mkdir()  # killed after its last file
    run(random_lm("mtsae"), corpora, folder)
    assert set(folder.iterdir()) == set(before)
    with pytest.raises(ConfigError, match=r"made with other settings \(k\)"):
        run(random_lm("mtsae"), corpora, folder, k=2)


def test_text_that_ends_early_and_text_that_is_none(random_lm: Any, corpora: Corpora, tmp_path: Path) -> None:
    long = dataclasses.replace(corpora, n_tokens=10**9)
    n_contexts = sum(len(list(long.contexts(corpus))) for corpus in range(2))
    about = run(random_lm("topk"), long, tmp_path / "a")
    assert 0.8 * 32 * n_contexts < about["n_tokens"] < 32 * n_contexts
    assert about["n_cofiring_tokens"] == about["n_tokens"], "all of so little text, whatever was asked for"
    short = tmp_path / "short.txt"
    short.write_text("Too short.")
    with pytest.raises(
        DataError, match=r"short\.txt: expected at least one context of 32 tokens in split 'train', got none.*give more text$"
    ):
        run(random_lm("topk"), dataclasses.replace(corpora, sources=(str(short),)), tmp_path / "b")
    run(random_lm("topk"), corpora, tmp_path / "b", k=2)  # nothing was found out, so other settings may use the folder


def test_sizes_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match="expected n_ablated of at most n_examples=2, got 3"):
        Plan(n_examples=2)
    with pytest.raises(ConfigError, match="expected before of at least 0, got -1"):
        Plan(before=-1)
    with pytest.raises(ConfigError, match="expected n_text_contexts of at least 1, got 0"):
        Plan(n_text_contexts=0)
    with pytest.raises(ConfigError, match="expected n_attribution_contexts of at least 0, got -1"):
        Plan(n_attribution_contexts=-1)


def test_how_much_text_there_is(corpora: Corpora) -> None:
    assert corpora.n_tokens_available == corpora.n_tokens == 640
    n_contexts = sum(len(list(corpora.contexts(corpus, 10**9))) for corpus in range(2))
    assert dataclasses.replace(corpora, n_tokens=10**9).n_tokens_available == 32 * n_contexts


def test_no_context_is_none_and_not_all(corpora: Corpora) -> None:
    assert [len(list(corpora.contexts(0, n))) for n in (0, 1, None)] == [0, 1, 10]


def test_persistence_that_was_never_seen_is_unknown(look: Any, lm: Any, corpora: Corpora) -> None:
    """A feature that fires only at the end of contexts has an unknown persistence, not 0."""
    survey = look(lm, corpora)
    one, other = survey.counts.n_active_in_all.topk(2).indices.tolist()
    survey.counts.could_persist[2:, one] = survey.counts.persisted[2:, one] = 0
    survey.counts.persisted[:, other] = 0
    column = _firing_columns(survey)["persistence"]
    assert [value is None for value in column[one].as_py()] == [False, False, True, True]
    assert column[other].as_py() == [0.0] * 4


def test_a_pass_carried_on_shows_how_far_it_is(
    random_lm: Any, corpora: Corpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars = []
    original = module.tqdm
    monkeypatch.setattr(module, "tqdm", lambda *items, **options: bars.append(original(*items, **options)) or bars[-1])
    lm, original_add = random_lm("topk"), Survey.add
    with monkeypatch.context() as patch:
        patch.setattr(Survey, "add", lambda self, batch: (original_add(self, batch), signal.raise_signal(signal.SIGTERM)))
        with pytest.raises(TrainingInterrupted):
            module._pass_over_text(lm, corpora, PLAN, tmp_path)
    module._pass_over_text(lm, corpora, PLAN, tmp_path)
    first, second = bars
    assert 0 < first.n == second.initial < second.n == second.total == 20 * 32


def test_nothing_optional(random_lm: Any, corpora: Corpora, tmp_path: Path) -> None:
    """One corpus, no sample, no effects."""
    plan = Plan(2, 0, 0, 0, n_ablated=0, n_attributed=0, n_attribution_contexts=0, n_text_contexts=1)
    one = dataclasses.replace(corpora, sources=corpora.sources[:1])
    explore(random_lm("mtsae"), one, tmp_path, plan, settings={}, about=lambda seconds: {})
    facts = Exploration.open(tmp_path)
    assert facts.features[["selectivity", "ablation_next_nll", "attribution"]].isna().all(axis=None)
    assert (facts.features["n_ablated"] == 0).all()
    examples = [example for feature in range(24) for example in facts.examples(feature)]
    assert len(examples) > 10
    assert all(len(e.tokens) == 1 and e.kind == "top" and e.model_attribution == () for e in examples)
    assert not any(math.isnan(value) for e in examples for value in e.token_scale_contributions)


@pytest.mark.parametrize("content", [b"x" * 50, b"", None])
def test_a_damaged_result_of_a_stopped_run_is_one_line(content: bytes | None, tmp_path: Path) -> None:

    assert module._kept(tmp_path, "ablation", lambda: torch.ones(3)).tolist() == [1, 1, 1]
    path = tmp_path / "ablation.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged if content is None else content)
    again = r"^[^\n]*ablation\.safetensors: expected [^\n]*damaged\); delete it; the same command makes it again$"
    with pytest.raises(DataError, match=again):
        module._kept(tmp_path, "ablation", lambda: torch.ones(3))


def test_damaged_facts_say_what_to_delete(random_lm: Any, corpora: Corpora, tmp_path: Path) -> None:
    plan = Plan(2, 0, 0, 0, n_ablated=0, n_attributed=0, n_attribution_contexts=0, n_text_contexts=1)

    def run() -> Any:
        return explore(random_lm("mtsae"), corpora, tmp_path, plan, settings={}, about=lambda seconds: {})

    whole = run()
    assert run() == whole
    for name in ("features.parquet", "explore.json"):
        content = bytearray((tmp_path / name).read_bytes())
        content[len(content) // 2] ^= 0x10
        (tmp_path / name).write_bytes(content)
        with pytest.raises(
            DataError, match=rf"^[^\n]*{name}: expected [^\n]*damaged\); delete [^\n]*explore\.json; the same command"
        ):
            run()
        (tmp_path / "explore.json").unlink()
        assert run() == whole
