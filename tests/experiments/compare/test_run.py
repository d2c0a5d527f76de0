"""`mtsae compare` from the settings to the report, on a tiny grid."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from several_ranks import on_ranks

from mtsae_lens.data.activation_cache import ActivationCache
from mtsae_lens.errors import ConfigError, DataError, TrainingInterrupted
from mtsae_lens.experiments.compare import grid as grid_module
from mtsae_lens.experiments.compare.arms import ARMS
from mtsae_lens.experiments.compare.cells import n_features, training_flops
from mtsae_lens.experiments.compare.given import check_given, shortest_names
from mtsae_lens.experiments.compare.grid import Grid
from mtsae_lens.experiments.compare.run import run_compare
from mtsae_lens.experiments.compare.settings import CompareSettings
from mtsae_lens.opening import load_sae
from mtsae_lens.ranks import current_ranks

TINY: dict[str, Any] = {
    "training_tokens": 2_048,
    "search_tokens": 1_024,
    "batch_size_tokens": 128,
    "context_size": 32,
    "d_sae": 32,
    "l0": (4,),
    "lr": (1e-3, 4e-3),
    "n_seeds": 2,
    "n_eval_contexts": 4,
    "n_tune_contexts": 4,
    "n_l0_trials": 1,
}


CONTROLS = ("topk_wider", "memory_lag_1", "frozen_decoder", "untrained")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[CompareSettings, dict[str, Any]]:
    out = tmp_path_factory.mktemp("compare") / "out"
    settings = CompareSettings(**TINY, architectures=("mtsae_memory", "topk", "jumprelu"), controls=CONTROLS, out=out)
    return settings, run_compare(settings)[0].to_json()


def test_every_cell_is_there_with_its_search(done: tuple[CompareSettings, dict[str, Any]]) -> None:
    _, metrics = done
    cells = metrics["cells"]
    assert len(cells) == 3 * 2 + len(CONTROLS)
    by_name = {(cell["name"], cell["seed"]): cell for cell in cells}
    assert by_name["topk", 0]["measured"]["metrics"]["l0"] <= 4
    assert {t["lr"] for entry in metrics["search"] if entry["name"] == "topk" for t in entry["trials"]} == {1e-3, 4e-3}
    assert {entry["name"] for entry in metrics["search"]} == {"mtsae_memory", "topk", "jumprelu"}  # controls take theirs
    assert by_name["topk_wider", 0]["trained"]["lr"] == by_name["topk", 0]["trained"]["lr"]
    (topk,) = (entry for entry in metrics["search"] if entry["name"] == "topk")
    first, second = topk["finals"]
    assert first["explained_variance"] >= second["explained_variance"]
    assert by_name["topk", 0]["trained"] == first
    jumprelu = [by_name["jumprelu", seed]["trained"]["coefficient"] for seed in (0, 1)]
    assert jumprelu[0] is not None
    assert jumprelu[0] == jumprelu[1]
    assert {v["name"] for v in metrics["verdicts"]} == {"mtsae_memory"}
    assert by_name["topk", 0]["coded"]["bits_per_token"] > 0
    assert -1 < by_name["topk", 0]["coded"]["explained_variance_coded"] < 1
    json.dumps(metrics, allow_nan=False)


def test_floors_are_what_they_say(done: tuple[CompareSettings, dict[str, Any]]) -> None:
    settings, metrics = done
    folders = {cell["name"]: _folder(settings, cell) for cell in metrics["cells"] if cell["seed"] == 0}
    topk, frozen, untrained = (load_sae(folders[name]) for name in ("topk", "frozen_decoder", "untrained"))
    torch.testing.assert_close(frozen.W_dec, untrained.W_dec)  # the same seed
    assert not torch.allclose(topk.W_dec, untrained.W_dec, atol=1e-3)
    assert not torch.allclose(frozen.W_enc, untrained.W_enc, atol=1e-3)
    assert untrained.b_dec.any()


def test_weights_and_operations_are_counted(done: tuple[CompareSettings, dict[str, Any]]) -> None:
    settings, metrics = done
    measured = {cell["name"]: cell["measured"] for cell in metrics["cells"]}
    d_in, d_sae = 128, 32
    assert measured["topk"]["n_parameters"] == 2 * d_in * d_sae + d_in + d_sae
    assert measured["topk"]["flops_per_token"] == 6 * 2 * d_in * d_sae
    prediction = (7 + 1) * d_in * 64
    wider = measured["topk_wider"]["n_parameters"]
    assert 0 <= wider - measured["topk"]["n_parameters"] - prediction < 2 * d_in + 1
    assert n_features(ARMS["topk_wider"], d_in, d_sae, {}) == measured["topk_wider"]["d_sae"]
    memory = next(cell for cell in metrics["cells"] if cell["name"] == "mtsae_memory")
    assert training_flops(load_sae(_folder(settings, memory))) == memory["measured"]["flops_per_token"]
    assert memory["measured"]["metrics"]["prediction_parameters"] == prediction


def test_nothing_is_done_twice_and_the_grid_can_grow(
    done: tuple[CompareSettings, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, metrics = done
    trained: list[str] = []
    original: Callable[..., Any] = grid_module.train_cell

    def counted(*args: Any, **options: Any) -> Any:
        trained.append(args[0].architecture)
        return original(*args, **options)

    monkeypatch.setattr(grid_module, "train_cell", counted)
    again = run_compare(settings)[0].to_json()
    assert (trained, again["cells"]) == ([], metrics["cells"])
    given = _folder(settings, metrics["cells"][0])
    larger = settings.model_copy(
        update={"l0": (4, 2), "architectures": ("topk",), "controls": (), "n_seeds": 1, "saes": (given,)}
    )
    cells = run_compare(larger)[0].to_json()["cells"]
    assert trained == ["topk"] * 4  # two learning rates at the new L0, short and at full length
    assert [(cell["name"], cell["target_l0"]) for cell in cells] == [("topk", 4), ("topk", 2), (given.name, None)]
    assert cells[0] == next(cell for cell in metrics["cells"] if cell["name"] == "topk")
    with pytest.raises(ConfigError, match="made with other settings"):
        run_compare(settings.model_copy(update={"d_sae": 16}))


def test_ranks_share_the_trainings(done: tuple[CompareSettings, dict[str, Any]], tmp_path: Path) -> None:
    """The cells are those of one process, cache included, and each rank has trained some."""
    settings = CompareSettings(**TINY, architectures=("topk",), controls=(), out=tmp_path / "out")
    original: Callable[..., Any] = grid_module.train_cell

    def work() -> None:
        ranks, trained = current_ranks(), []

        def counted(training: Any, *args: Any, **options: Any) -> Any:
            trained.append(training.out.name)
            return original(training, *args, **options)

        grid_module.train_cell = counted  # type: ignore[assignment]  # in a fork
        cells = run_compare(settings)[0].to_json()["cells"]
        (tmp_path / f"rank{ranks.rank}").write_text(json.dumps([trained, cells]))

    assert on_ranks(2, tmp_path / "ranks", work) == [(0, "")] * 2
    (first, cells), (second, same_cells) = (json.loads((tmp_path / f"rank{rank}").read_text()) for rank in range(2))
    assert len(first) == 3  # a rate of the search, the same rate at full length, and the second seed
    assert len(second) == 2
    assert cells == same_cells == json.loads((settings.out / "metrics.json").read_text())["cells"]
    expected = [cell for cell in done[1]["cells"] if cell["name"] == "topk"]
    assert [cell["seed"] for cell in cells] == [cell["seed"] for cell in expected] == [0, 1]
    for cell, wanted in zip(cells, expected, strict=True):
        assert cell["trained"]["lr"] == wanted["trained"]["lr"]
        assert cell["measured"]["metrics"] == pytest.approx(wanted["measured"]["metrics"], rel=1e-4, abs=1e-6)


def test_a_signal_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = CompareSettings(
        **TINY | {"n_seeds": 1, "lr": (1e-3,)}, architectures=("topk", "batchtopk"), controls=(), out=tmp_path / "out"
    )
    original: Callable[..., Any] = grid_module.train_cell

    def stopping(*args: Any, **options: Any) -> Any:
        if args[0].architecture == "batchtopk":
            raise TrainingInterrupted(2, "stopped by hand")
        return original(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(grid_module, "train_cell", stopping)
        with pytest.raises(TrainingInterrupted, match="1 of 2 trials are finished and kept"):
            run_compare(settings)
    assert {cell.name for cell in run_compare(settings)[0].cells} == {"topk", "batchtopk"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"architectures": ("topkk",)}, "got 'topkk'"),
        ({"architectures": ("topk_wider",)}, "architectures: expected one of mtsae"),
        ({"controls": ("topk",)}, "controls: expected one of topk_wider"),
        ({"l0": (0,)}, "l0: expected numbers of at least 1"),
        ({"lr": (-1.0,)}, "lr: expected positive numbers"),
        ({"sae": {"topp": {"k": 3}}}, "expected the name of an architecture"),
    ],
)
def test_settings_that_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CompareSettings(**given)


def test_an_sae_at_another_hook_is_refused(done: tuple[CompareSettings, dict[str, Any]], tmp_path: Path) -> None:
    settings, metrics = done
    given = _folder(settings, metrics["cells"][0])
    other = CompareSettings(**TINY, hook_name="blocks.1.hook_resid_post", saes=(given,), out=tmp_path / "out")
    with pytest.raises(ConfigError, match=r"expected an SAE at blocks\.1\.hook_resid_post"):
        run_compare(other)


def _folder(settings: CompareSettings, cell: dict[str, Any]) -> Path:
    trained = cell["trained"]
    (folder,) = (
        path
        for path in (settings.out / "saes").iterdir()
        if f"__{cell['name']}__l0={cell['target_l0']},".replace(",", "__") in path.name
        and f"__lr={trained['lr']:g}__" in path.name
        and path.name.endswith(f"__seed_{cell['seed']}")
        and (trained.get("coefficient") is None or f"coefficient={trained['coefficient']:g}" in path.name)
    )
    return folder


def test_a_rate_or_a_seed_that_diverges_does_not_end_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = CompareSettings(
        **TINY | {"lr": (1e-3, 1e18), "n_seeds": 1}, architectures=("topk",), controls=(), out=tmp_path / "out"
    )
    result, report = run_compare(settings)
    assert [cell.trained.lr for cell in result.cells if cell.trained] == [1e-3]
    assert {t.lr for t in result.search[0].trials if t.failed} == {1e18}
    assert result.diverged == ()
    original: Callable[..., Any] = grid_module.train_cell

    def diverging(training: Any, *args: Any, **options: Any) -> Any:
        changes = {"lr": 1e18} if training.seed == 1 else {}
        return original(training.model_copy(update=changes), *args, **options)

    monkeypatch.setattr(grid_module, "train_cell", diverging)
    result, report = run_compare(settings.model_copy(update={"n_seeds": 3}))
    assert [cell.seed for cell in result.cells] == [0, 2]
    assert result.diverged == ("blocks.3.hook_resid_post/topk/l0=4,lr=0.001/seed_1",)
    assert any("diverged" in sentence and "seed_1" in sentence for sentence in report.summary)


def test_rates_that_all_diverge_are_reported(tmp_path: Path) -> None:
    settings = CompareSettings(**TINY | {"lr": (1e18,)}, architectures=("topk",), controls=(), out=tmp_path / "out")
    with pytest.raises(
        DataError, match=r"^topk at blocks.3.hook_resid_post, L0 4: expected a learning rate .* got 1e\+18 .*lower --lr"
    ):
        run_compare(settings)


def test_a_text_without_a_split_is_refused_before_training(tmp_path: Path) -> None:
    text = tmp_path / "one.txt"
    text.write_text("It was the best of times, it was the worst of times. " * 400)
    settings = CompareSettings(**TINY, dataset=str(text), architectures=("topk",), controls=(), out=tmp_path / "out")
    with pytest.raises(DataError):
        run_compare(settings)
    assert not (settings.out / "search").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hook_name": "blocks.1.hook_resid_post"}, r"expected an SAE at blocks\.3\.hook_resid_post"),
        ({"hook_head_index": 1}, "expected an SAE of all heads, got one of head 1"),
        ({"model_name": "pythia-70m"}, "expected an SAE with model_name=embedded, as the cache has, got pythia-70m"),
        ({"prepend_bos": False}, "expected an SAE with prepend_bos=True, as the cache has, got False"),
    ],
)
def test_an_sae_that_cannot_be_compared_is_refused(
    changes: dict[str, Any], message: str, done: tuple[CompareSettings, dict[str, Any]]
) -> None:
    settings, metrics = done
    grid = Grid(settings, ActivationCache.open(settings.out / "cache"), settings.out / "cache")
    sae = load_sae(_folder(settings, metrics["cells"][0]))
    check_given(Path("mine"), sae, grid)
    for name, value in changes.items():
        setattr(sae.cfg.metadata, name, value)
    with pytest.raises(ConfigError, match=f"^mine: {message}"):
        check_given(Path("mine"), sae, grid)


def test_an_sae_of_another_width_is_refused(done: tuple[CompareSettings, dict[str, Any]]) -> None:
    settings, metrics = done
    grid = Grid(settings, ActivationCache.open(settings.out / "cache"), settings.out / "cache")
    sae = load_sae(_folder(settings, metrics["cells"][0]))
    sae.cfg.d_in = 64
    with pytest.raises(ConfigError, match="expected an SAE with d_in=128, got d_in=64"):
        check_given(Path("mine"), sae, grid)


def test_folders_of_one_name_are_told_apart() -> None:
    assert shortest_names([Path("runs/a/sae"), Path("runs/b/sae")]) == ["a/sae", "b/sae"]
    assert shortest_names([Path("runs/a/x"), Path("runs/b/y")]) == ["x", "y"]
    assert shortest_names([Path("runs/a/sae"), Path("other/a/sae")]) == ["runs/a/sae", "other/a/sae"]
    assert shortest_names([]) == []


def test_the_wider_control_follows_the_settings_of_the_memory() -> None:
    small = n_features(ARMS["topk_wider"], 128, 32, {"memory_rank": 8})
    assert 0 <= (small - 32) * (2 * 128 + 1) - (7 + 1) * 128 * 8 < 2 * 128 + 1
    assert small < n_features(ARMS["topk_wider"], 128, 32, {})
