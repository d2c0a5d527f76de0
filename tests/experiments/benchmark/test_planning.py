"""Test the plan of the benchmark: the order of the cells, and that each depends on what changes its result and on nothing else."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from several_ranks import on_ranks

from mtsae_lens.digests import digest_file
from mtsae_lens.errors import DataError, MTSAEWarning
from mtsae_lens.experiments.benchmark import measuring
from mtsae_lens.experiments.benchmark import run as module
from mtsae_lens.experiments.benchmark.arms import OURS, QUICK, TASKS, BenchmarkSize
from mtsae_lens.experiments.benchmark.cells import Cell, MethodsCell, StabilityCell
from mtsae_lens.experiments.benchmark.planning import Saes, _sweeps, plan_cells, training_settings
from mtsae_lens.experiments.benchmark.results import BenchmarkResult, TrainedSAE
from mtsae_lens.experiments.benchmark.run import run_benchmark
from mtsae_lens.experiments.benchmark.settings import BenchmarkSettings
from mtsae_lens.experiments.benchmark.stability_cell import stability_cell
from mtsae_lens.experiments.benchmark.weights_cell import weights_cell
from mtsae_lens.ranks import current_ranks
from mtsae_lens.sealed import write_sealed_json
from mtsae_lens.training.recipe import train_sae
from mtsae_lens.unlearning.finetuning.finetune import FinetuneSettings
from mtsae_lens.unlearning.finetuning.losses import GradientDifference
from mtsae_lens.unlearning.finetuning.sweeps import LOSSES, SWEEPS, Sweep

SAES = {OURS: {"k": 4}, "topk": {"k": 4}}


def trained(settings: BenchmarkSettings) -> Saes:
    names = [f"{architecture}/{seed}" for architecture in settings.saes for seed in settings.seeds()]
    return {name: TrainedSAE(metrics={"l0": 4.0}, weights_sha256=f"weights of {name}") for name in names}


def plan(**given: Any) -> dict[str, Any]:
    """Return the settings of every cell of a small benchmark."""
    settings = BenchmarkSettings(**({"n_seeds": 2, "saes": SAES, "losses": ("npo",), "tasks": ("domain",)} | given))
    return {name: cell.settings for name, cell in plan_cells(settings, trained(settings)).items()}


def test_cells_are_planned_seed_by_seed(tmp_path: Path) -> None:
    settings = BenchmarkSettings(out=tmp_path, n_seeds=2, saes=SAES, losses=("npo", "rmu"))
    cells = {name: cell.compute for name, cell in plan_cells(settings, trained(settings)).items()}
    assert list(cells) == [
        name
        for seed in (0, 1)
        for task in ("domain", "people")
        for name in (
            *(f"{task}/{method}/{seed}" for method in (OURS, "topk", "npo", "rmu")),
            *([f"{task}/reference"] if seed == 0 else []),
        )
    ] + [f"{task}/stability/{sae}-2" for task in ("domain", "people") for sae in settings.saes]
    for name, cell in cells.items():
        if "stability" in name:
            (setups,) = cell.args  # type: ignore[attr-defined]
            sae = name.split("/")[2].removesuffix("-2")
            assert [setup.sae_folder for setup in setups] == [settings.training(sae, seed).out for seed in (0, 1)]
            continue
        task, method, seed = (*name.split("/"), "0")[:3]
        setup = cell.args[0]  # type: ignore[attr-defined]
        assert setup.task_of is TASKS[task]
        sae = method if method in settings.saes else OURS
        assert setup.sae_folder == settings.training(sae, int(seed)).out == tmp_path / "saes" / f"{sae}-{seed}"
        assert cell.keywords["attacked"] == (seed == "0")  # type: ignore[attr-defined]
        if method in LOSSES:
            kind = "questions" if task == "people" else "text"
            assert cell.args[1:] == (settings.size(), method, SWEEPS[kind][method], int(seed))  # type: ignore[attr-defined,index]


def test_cells_without_a_reference_losses_or_attacks() -> None:
    alone = BenchmarkSettings(reference=None, n_seeds=1, losses=(), n_attacked_seeds=0)
    cells = plan_cells(alone, trained(alone))
    assert not any("reference" in name for name in cells)
    assert not any(cell.compute.keywords.get("attacked") for cell in cells.values())  # type: ignore[attr-defined]
    quick = BenchmarkSettings(quick=True, forget="kjv", retain=("sotu",))
    assert [name for name in plan_cells(quick, trained(quick)) if "npo" in name] == ["own/npo/0"]


def test_only_losses_of_all_weights_are_bound_to_later_layers() -> None:
    runs = {loss: _sweeps(TASKS["domain"], loss, 3) for loss in ("npo", "rmu")}
    assert {sweep.settings.first_layer for sweep in runs["npo"]} == {3}
    assert {sweep.settings.first_layer for sweep in runs["rmu"]} == {0}


@pytest.mark.parametrize(
    "more",
    [
        {"losses": ("npo", "rmu")},
        {"saes": {**SAES, "standard": {"l1_coefficient": 1.0}}},
        {"saes": {"standard": {"l1_coefficient": 1.0}, **SAES}},
        {"tasks": ("people", "domain")},
    ],
)
def test_a_loss_an_sae_or_a_task_more_leaves_the_other_cells_as_they_are(more: dict[str, Any]) -> None:
    before, after = plan(), plan(**more)
    assert {name: after[name] for name in before} == before
    assert len(after) > len(before)


def test_a_seed_more_leaves_all_but_the_stability_as_it_is() -> None:
    before, after = plan(), plan(n_seeds=3)
    kept = {name: of_cell for name, of_cell in before.items() if "stability" not in name}
    assert {name: after[name] for name in kept} == kept
    assert "domain/stability/topk-3" in after


@pytest.mark.parametrize(
    ("changed", "cells"),
    [
        ({"n_attacked_seeds": 2}, r"\w+/1"),
        ({"saes": {**SAES, "topk": {"k": 9}}}, r"topk/.|stability/topk-2"),
        ({"reference": None}, r"(mtsae|topk|npo)/."),
        ({"contexts_per_split": 5}, r".*"),
        ({"context_size": 64}, r".*"),
        ({"prepend_bos": False}, r".*"),
        ({"hook_name": "blocks.2.hook_resid_post"}, r".*"),
        ({"first_trained_layer": 1}, r"\w+/0|reference|npo/."),
        (
            {"quick": True, "n_seeds": 2, "contexts_per_split": BenchmarkSize().contexts_per_split},
            r"(mtsae|topk)/.|npo/0|reference",
        ),
    ],
)
def test_a_change_of_settings_changes_the_cells_that_depend_on_it(changed: dict[str, Any], cells: str) -> None:
    before, after = plan(), plan(**changed)
    assert [name for name in after if after[name] != before[name]] == [
        name for name in after if re.fullmatch(f"domain/({cells})", name)
    ]


def test_cells_about_people_depend_on_how_many_questions_select_reads() -> None:
    size = BenchmarkSize()
    given = {"quick": True, "n_seeds": 2, "contexts_per_split": size.contexts_per_split}
    before, after = plan(tasks=("people",)), plan(tasks=("people",), **given)
    assert QUICK.max_select_questions < size.max_select_questions
    assert not [name for name in after if after[name] == before[name]]


@pytest.mark.parametrize(
    ("changed", "stability"),
    [({"neutral": ("jargon",)}, False), ({"retain": ("austen",)}, True), ({"near": ("milton",)}, True)],
)
def test_cells_depend_on_the_text_of_their_task(changed: dict[str, Any], stability: bool) -> None:
    own = {"forget": "kjv", "retain": ("sotu",)}
    before, after = plan(**own), plan(**own | changed)
    assert [name for name in after if after[name] == before[name]] == [
        name for name in after if "stability" in name and not stability
    ]


def test_cells_depend_on_the_files_of_their_text_and_on_the_weights_of_their_sae(text_file: Path, sea_file: Path) -> None:
    own = {"forget": str(sea_file), "retain": (str(text_file),)}
    before = plan(**own)
    content = sea_file.read_text()
    try:
        sea_file.write_text(content + "The sea is wide. ")
        assert all(of_cell != before[name] for name, of_cell in plan(**own).items())
    finally:
        sea_file.write_text(content)
    settings = BenchmarkSettings(n_seeds=1, saes=SAES, losses=("npo",), tasks=("domain",))
    saes = trained(settings)
    others = {**saes, "topk/0": TrainedSAE(metrics={}, weights_sha256="other weights")}
    one, other = ({name: cell.settings for name, cell in plan_cells(settings, s).items()} for s in (saes, others))
    assert [name for name in one if one[name] != other[name]] == ["domain/topk/0", "domain/stability/topk-1"]


def test_an_sae_does_not_depend_on_the_measurements_or_on_other_saes() -> None:
    def of_topk(**given: Any) -> dict[str, Any]:
        return training_settings(BenchmarkSettings(saes=SAES, **given), "topk", 0)

    usual = of_topk()
    assert usual == of_topk(contexts_per_split=5, first_trained_layer=1, tasks=("people",), losses=(), reference=None)
    assert usual == training_settings(BenchmarkSettings(saes={"topk": {"k": 4}}), "topk", 0)
    assert usual != of_topk(d_sae=64)
    assert usual != of_topk(training_tokens=64)
    assert usual != of_topk(context_size=64)
    assert usual != training_settings(BenchmarkSettings(saes={"topk": {"k": 5}}), "topk", 0)


RUNS = (Sweep(GradientDifference(), FinetuneSettings(1e-2, 2, 2, snapshots=(1, 2))),)


def test_a_cell_of_weights_does_not_depend_on_the_sae(
    make_setup: Any, text_task: Any, size: BenchmarkSize, tiny_settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings of these cells have the hook alone."""
    monkeypatch.setattr(measuring, "read_sweep", lambda *args: {"0.05 goal": 1})
    train_sae(tiny_settings(tmp_path / "other", training_tokens=32 * 8, seed=5, architecture="topk", sae={"k": 2}, d_sae=24))
    setup, short = make_setup(text_task), replace(size, relearned_documents=(2,), n_relearning_steps=2)
    one, other = (
        weights_cell(replace(setup, sae_folder=folder), short, "mixed", RUNS, 0, attacked=True).to_json()
        for folder in (setup.sae_folder, tmp_path / "other")
    )
    assert one == other
    assert {"main", "attacks"} < set(one["methods"]["mixed"])


# the whole run, with results that are not computed ------------------------------------------------------------------------


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make every training and every cell empty, and return what was computed."""
    found: list[str] = []

    def train(settings: Any) -> TrainedSAE:
        found.append(settings.out.name)
        settings.out.mkdir(parents=True, exist_ok=True)
        weights = settings.out / "sae_weights.safetensors"
        weights.write_text(settings.out.name)
        return TrainedSAE(metrics={"l0": 4.0}, weights_sha256=digest_file(weights))

    def timed(compute: Any) -> Cell:
        if compute.func is stability_cell:
            found.append(f"stability/{compute.args[0][0].sae_folder.name}")
            return StabilityCell(stability={}, seconds=1.0)
        found.append(f"{compute.args[0].task_of.name}/{compute.args[2]}")
        return MethodsCell(methods={}, seconds=1.0)

    monkeypatch.setattr(module, "_train", train)
    monkeypatch.setattr(module, "_timed", timed)
    return found


def run(out: Path, **given: Any) -> BenchmarkResult:
    small: dict[str, Any] = {"n_seeds": 1, "saes": {"topk": {"k": 4}}, "losses": ("npo",), "tasks": ("domain",)}
    settings = BenchmarkSettings(**(small | {"out": out, "reference": None, "n_workers": 1} | given))
    result, _ = run_benchmark(settings)
    assert BenchmarkResult.from_json(json.loads((out / "metrics.json").read_text())) == result
    return result


def test_a_run_with_more_arms_computes_only_those(tmp_path: Path, computed: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(tmp_path).seconds_of_cells == 3.0
        assert computed == ["topk-0", "domain/topk", "domain/npo", "stability/topk-0"]
        computed.clear()
        run(tmp_path)
        assert computed == []
        run(tmp_path, losses=("npo", "rmu"))
        assert computed == ["domain/rmu"]
        computed.clear()
        run(tmp_path, saes={"standard": {"l1_coefficient": 1.0}, "topk": {"k": 4}})
        assert computed == ["standard-0", "domain/standard", "stability/standard-0"]


def test_ranks_share_the_cells(tmp_path: Path, computed: list[str]) -> None:
    settings = BenchmarkSettings(
        n_seeds=1,
        saes={"topk": {"k": 4}},
        losses=("npo",),
        tasks=("domain",),
        out=tmp_path / "out",
        reference=None,
        n_workers=1,
    )

    def work() -> None:
        result, _ = run_benchmark(settings)
        (tmp_path / f"rank{current_ranks().rank}").write_text(json.dumps([computed, result.to_json()]))

    assert on_ranks(2, tmp_path / "ranks", work) == [(0, "")] * 2
    (first, result), (second, same_result) = (json.loads((tmp_path / f"rank{rank}").read_text()) for rank in range(2))
    assert sorted(first + second) == ["domain/npo", "domain/topk", "stability/topk-0", "topk-0"]
    assert min(len(first), len(second)) == 1
    assert result == same_result
    assert BenchmarkResult.from_json(json.loads((settings.out / "metrics.json").read_text())).to_json() == result


def test_a_changed_setting_is_computed_again_with_a_warning_and_the_earlier_results_are_kept(
    tmp_path: Path, computed: list[str]
) -> None:
    run(tmp_path)
    computed.clear()
    with pytest.warns(MTSAEWarning, match=r"cells: 2 of 3 trials have results with other settings only \(attacks\..*are kept"):
        run(tmp_path, n_attacked_seeds=0)
    assert computed == ["domain/topk", "domain/npo"]
    computed.clear()
    run(tmp_path)
    assert computed == []


def test_a_folder_of_an_earlier_version_is_computed_again_with_a_warning(tmp_path: Path, computed: list[str]) -> None:
    for folder, name in (("training", "topk__0"), ("cells", "domain__topk__0"), ("cells", "domain__npo__0")):
        write_sealed_json(tmp_path / folder / f"{name}.json", {"methods": {}, "trial_name": name.replace("__", "/")})
        (tmp_path / folder / "settings.json").write_text('{"methods": {"domain": {"sweeps": {"npo": "..."}}}}')
    with pytest.warns(MTSAEWarning) as warned:
        run(tmp_path)
    assert [str(one.message).partition(": ")[2] for one in warned] == [
        f"{n} trials have results with other settings only (those of an earlier version); they are computed again, and the earlier "
        "results are kept"
        for n in ("1 of 1", "2 of 3")
    ]
    assert computed == ["topk-0", "domain/topk", "domain/npo", "stability/topk-0"]


@pytest.mark.parametrize("damage", ["another", "no"])
def test_an_sae_that_was_replaced_is_refused(tmp_path: Path, computed: list[str], damage: str) -> None:
    run(tmp_path)
    weights = tmp_path / "saes" / "topk-0" / "sae_weights.safetensors"
    if damage == "another":
        weights.write_text("other weights")
    else:
        weights.unlink()
    with pytest.raises(
        DataError, match=rf"expected the SAE that the results in .*training describe, got {damage} file; delete"
    ):
        run(tmp_path)


def test_other_weights_are_attacked_at_the_hook_of_the_benchmark() -> None:
    own = {
        "transcoder": {
            "architecture": "mtsae_transcoder",
            "hook_name": "blocks.0.hook_resid_pre",
            "hook_name_out": "blocks.0.hook_attn_out",
        }
    }
    usual, first, last, alone = (plan(saes=saes) for saes in (SAES, own | SAES, SAES | own, own))
    for name in ("domain/npo/0", "domain/reference"):
        assert usual[name] == first[name] == last[name]  # so that earlier results stay valid
        assert "hooks" not in usual[name]
        assert alone[name] == usual[name] | {"hooks": ["blocks.0.hook_resid_pre", "blocks.0.hook_attn_out"]}
    cells = plan_cells(settings := BenchmarkSettings(n_seeds=1, saes=own | SAES, losses=("npo",)), trained(settings))
    assert cells["domain/npo/0"].compute.args[0].sae_folder.name == f"{OURS}-0"  # type: ignore[attr-defined]
