"""Test the command line: what works, and for errors one line, exit code 2 and no partial files."""

from __future__ import annotations

import errno
import html
import json
import re
import resource
import shutil
import signal
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sae_lens import SAE
from safetensors.torch import load_file, save_file

import mtsae_lens
from mtsae_lens.commands.evaluate_results import METRIC_MEANINGS
from mtsae_lens.commands.train import TrainResult
from mtsae_lens.data.activations import SequenceActivations
from mtsae_lens.errors import ConfigError
from mtsae_lens.experiments.paper.results import PaperResult
from mtsae_lens.experiments.paper.settings import PaperSettings
from mtsae_lens.experiments.planted.results import PlantedResult
from mtsae_lens.training.recipe import TrainSettings

HOOK = "blocks.0.hook_resid_post"


@pytest.fixture
def train(mtsae: Callable[..., Any], tiny_model_dir: Path, text_file: Path, tmp_path: Path) -> Callable[..., Any]:
    """`mtsae train` of five steps, with options changed by keyword, and further arguments."""

    def call(*more: Any, **changes: Any) -> Any:
        options = {
            "model": tiny_model_dir,
            "hook_name": HOOK,
            "dataset": text_file,
            "context_size": 32,
            "batch_size_tokens": 64,
            "training_tokens": 320,
            "d_sae": 32,
            "out": tmp_path / "out",
        } | changes
        arguments = [
            part for name, value in options.items() if value is not None for part in (f"--{name.replace('_', '-')}", value)
        ]
        return mtsae("train", *arguments, *(more or ("--set", "k=4")))

    return call


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def assert_refused(outcome: Any, message: str, out: Path | None = None) -> None:
    assert outcome.code == 2, outcome.err
    assert re.search(message, outcome.error), outcome.error
    if out is not None and out.is_dir():
        assert files_in(out) == []


def assert_self_contained(report: Path) -> str:
    page = report.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert page.rstrip().endswith("</html>")
    assert "Plotly.newPlot" in page
    ours = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", ours)
    assert not re.search(r"<script[^>]*\ssrc=|<link[^>]*\shref=|@import|url\(\s*['\"]?https?:", page)
    return page


# ---------------------------------------------------------------------------------------------- what works


def test_train_evaluate_unlearn(
    mtsae: Callable[..., Any], train: Callable[..., Any], tmp_path: Path, text_file: Path, sea_file: Path
) -> None:
    both = tmp_path / "both"
    both.mkdir()
    shutil.copy(text_file, both)
    shutil.copy(sea_file, both)
    sae = tmp_path / "sae"
    (tmp_path / "train.yaml").write_text("log_every_n_steps: 10\nsae: {k: 4}\n")
    outcome = train("--config", tmp_path / "train.yaml", out=sae, dataset=both, training_tokens=64 * 30)
    assert outcome.code == 0, outcome.err
    assert "trained 30 steps: on training batches explained variance" in outcome.out
    assert f"saved in {sae}" in outcome.out
    metrics = json.loads((sae / "metrics.json").read_text())
    counted = {"n_features", "never_fired", "always_on", "warning"}
    described = {"final", "waits", "resumed", "n_training_steps", "n_training_tokens", "dilations", "provenance"}
    assert set(metrics) == counted | described
    assert metrics["dilations"] == [0, 1, 2, 4, 8]
    assert (metrics["n_training_steps"], metrics["n_training_tokens"]) == (30, 1920)
    assert metrics["final"]["step"] == 30
    assert metrics["provenance"]["command"].startswith("mtsae train --model")
    assert "Which time scales" in assert_self_contained(sae / "report.html")

    outcome = mtsae("evaluate", sae, "--out", tmp_path / "evaluated", "--n-contexts", 20)
    assert outcome.code == 0, outcome.err
    assert "explained_variance" in outcome.out
    assert f"report: {tmp_path / 'evaluated' / 'report.html'}" in outcome.out
    metrics = json.loads((tmp_path / "evaluated" / "metrics.json").read_text())
    assert set(METRIC_MEANINGS) | {"provenance"} <= set(metrics)
    assert metrics["l0"] == pytest.approx(4, abs=0.1)
    assert metrics["future_leak"] == 0
    assert metrics["n_features"] == 32
    scales = metrics["scales"]["predictivity"]
    assert sum(scales[f"leading_{dilation}"] for dilation in (0, 1, 2, 4, 8)) == pytest.approx(1)
    assert 0 <= metrics["scales"]["context_share"]["10%"] <= metrics["scales"]["context_share"]["90%"]
    page = (tmp_path / "evaluated" / "report.html").read_text()
    assert "What the scales know" in page
    assert all(meaning.split("'")[0] in page for meaning in METRIC_MEANINGS.values())

    config = tmp_path / "unlearn.yaml"
    config.write_text(
        "n_features: [2, 4]\nmultipliers: [1.0]\nscores: [frequency_ratio]\ncontexts_per_split: 6\nn_random_draws: 2\nfar_budget: 50\n"
    )
    arguments = ("--forget", sea_file, "--retain", text_file, "--near", "kjv", "--near-budget", 50, "--min-ratio", 0.5)
    outcome = mtsae("unlearn", sae, *arguments, "--config", config, "--out", tmp_path / "unlearnt")
    assert outcome.code == 0, outcome.err
    metrics = json.loads((tmp_path / "unlearnt" / "metrics.json").read_text())
    documented = {"corpora", "random_control", "ladder", "documents", "chosen", "tune_sweep", "identity_error", "provenance"}
    assert set(metrics) == documented | {"calibrated_nll_delta", "gate", "generation", "samples"}
    of_edit = {"nll_clean", "nll_edited", "nll_delta", "kl", "nll_delta_low", "nll_delta_high", "gate_open", "role"}
    for source in (f".../{sea_file.name}", f".../{text_file.name}", "kjv"):
        assert of_edit <= set(metrics["corpora"][source])
        assert {"nll_clean", "nll_edited", "nll_delta"} <= set(metrics["random_control"][source])
        assert all(source in metrics["ladder"][rung] for rung in ("zero", "clamp", "gated_clamp"))
        assert metrics["documents"][source]
    assert metrics["provenance"]["settings"]["far_budget"] == 50
    assert len(metrics["tune_sweep"]) == 4  # two sizes of one score, two thresholds
    page = assert_self_contained(tmp_path / "unlearnt" / "report.html")
    assert all(words in page for words in ("suppression, not deletion", "Extraction strength", "AUROC", "Before and after"))
    assert metrics["samples"][f".../{sea_file.name}"][0]["prompt"] in html.unescape(page)

    edit = tmp_path / "unlearnt" / "edit.json"
    assert json.loads(edit.read_text())["edit"]["features"] == metrics["chosen"]["features"]
    arguments = ("--edit", edit, "--prompt", "It is said that", "--max-new-tokens", 5)
    outcome = mtsae("generate", sae, *arguments)
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("It is said that") == 2
    too_long = mtsae("generate", sae, *arguments[:-1], 500)
    assert_refused(too_long, "expected at most 64 tokens, the model's context, got .* and 500 new ones")


def test_paper(mtsae: Callable[..., Any], tiny_model_dir: Path, text_file: Path, tmp_path: Path) -> None:
    config = tmp_path / "paper.yaml"
    sizes = {"context_size": 32, "n_seeds": 1, "n_steps": 3, "n_draws": 50, "n_test_contexts": 4, "n_still_batches": 4}
    config.write_text(json.dumps({"parts": ["paper", "switches"], "n_workers": 1, **sizes}))  # JSON is YAML
    options = ("--model", tiny_model_dir, "--hook-name", HOOK, "--dataset", text_file, "--quick", "--config", config)
    outcome = mtsae("paper", *options, "--out", tmp_path / "paper")
    assert outcome.code == 0, outcome.err
    assert f"report: {tmp_path / 'paper' / 'report.html'}" in outcome.out
    metrics = json.loads((tmp_path / "paper" / "metrics.json").read_text())
    assert set(metrics) == {"reproduction", "initialisation", "switches", "provenance"}
    assert metrics["reproduction"]["n_steps"] == 4
    assert metrics["reproduction"]["largest_lr"] <= 0.00401 * 3e-4
    assert set(metrics["initialisation"]["null"]) == {"circular", "zero"}
    assert metrics["initialisation"]["gradients_apart"] < 0.05
    assert {"paper", "causal", "fixed"} <= set(metrics["switches"]["values"])
    read = PaperResult.from_json(metrics).to_json()
    assert read == {name: part for name, part in metrics.items() if name != "provenance"}
    page = assert_self_contained(tmp_path / "paper" / "report.html")
    assert all(
        title in page for title in ("Table 1", "Figure 1a", "Figure 1b", "Token budget", "Padding", "All fixes together")
    )

    trials = {path: path.stat().st_mtime_ns for path in (tmp_path / "paper").glob("*/trials/*.json")}
    assert mtsae("paper", *options, "--out", tmp_path / "paper").code == 0
    assert {path: path.stat().st_mtime_ns for path in trials} == trials
    other = tmp_path / "other.yaml"
    other.write_text(config.read_text().replace('"n_draws": 50', '"n_draws": 60'))
    refused = mtsae("paper", *options[:-1], other, "--out", tmp_path / "paper")
    assert_refused(refused, r"got results made with other settings \(n_draws\)")


def test_dilations_are_selected_from_the_text(mtsae: Callable[..., Any], train: Callable[..., Any], tmp_path: Path) -> None:
    outcome = train("--set", "dilations=auto", "--set", "k=4", out=tmp_path / "sae")
    assert outcome.code == 0, outcome.err
    selected = json.loads((tmp_path / "sae" / "cfg.json").read_text())["dilations"]
    assert len(selected) == len(set(selected)) == 5
    assert selected[0] == 0
    assert selected[-1] <= 16 // 2  # taps within half a context of 32
    refused = train("--architecture", "topk", "--set", "k=4", "--set", "dilations=auto", out=tmp_path / "topk")
    assert_refused(refused, "'topk'")


def test_a_number_that_was_not_finite_is_called_unknown(
    mtsae: Callable[..., Any], train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = TrainResult(
        final={"metrics/explained_variance": None, "metrics/l0": 4.0},
        waits={"time/wait_for_activations_s": 1.0, "time/wait_for_sae_s": 2.0},
        n_features=32,
        never_fired=3,
        always_on=None,
        warning=None,
        resumed=False,
        n_training_steps=12,
        n_training_tokens=96,
    )
    monkeypatch.setattr("mtsae_lens.commands.train.run_train", lambda *_, **__: result)
    outcome = train(out=tmp_path / "sae")
    assert outcome.code == 0, outcome.err
    assert "explained variance unknown, L0 4.0; of 32 features 3 never fired and unknown fired on over half" in outcome.out


def test_an_sae_that_is_dead_is_measured_too(mtsae: Callable[..., Any], train: Callable[..., Any], tmp_path: Path) -> None:
    dead = ("--set", "activation=relu", "--set", "l1_coefficient=1.0")
    assert train(*dead, out=tmp_path / "sae").code == 0
    sae = SAE.load_from_disk(tmp_path / "sae")
    sae.b_enc.data -= 1e6
    sae.b_dec.data *= 0  # an output of zero: the bias is 0 / 0
    sae.save_model(tmp_path / "sae")
    outcome = mtsae("evaluate", tmp_path / "sae", "--out", tmp_path / "evaluated", "--n-contexts", 20)
    assert outcome.code == 0, outcome.err
    metrics = json.loads((tmp_path / "evaluated" / "metrics.json").read_text())
    assert (metrics["l0"], metrics["dead_features"]) == (0, 32)
    assert metrics["relative_reconstruction_bias"] is None
    assert "got 0 of 32; give more contexts or features" in (tmp_path / "evaluated" / "report.html").read_text()


TINY_PLANT = """
planted: {d_in: 16, context_size: 72, n_features_per_duration: 2, n_patterns_per_lags: 1, n_cues: 4, pattern_rate: 0.05}
n_test_sequences: 16
"""


def test_planted(mtsae: Callable[..., Any], tmp_path: Path) -> None:
    config = tmp_path / "planted.yaml"
    config.write_text(TINY_PLANT)
    options = ("--n-seeds", 2, "--n-direction-seeds", 1, "--n-steps", 2, "--d-sae", 24, "--n-workers", 1, "--config", config)
    outcome = mtsae("planted", *options, "--out", tmp_path / "planted")
    assert outcome.code == 0, outcome.err
    metrics = json.loads((tmp_path / "planted" / "metrics.json").read_text())
    assert set(metrics) == {"planted", "directions", "planted_config", "provenance"}
    assert metrics["planted_config"]["d_in"] == 16
    planted = metrics["planted"]
    assert set(planted["f1"]) == {"mtsae", "topk", "batchtopk", "jumprelu", "standard"} == set(planted["chosen_on_tune"])
    assert planted["f1"]["topk"]["pattern -16"]["n"] == 2  # one a seed
    assert 0 < planted["oracle_f1"]["pointwise"]["cue"]["mean"] <= 1
    assert {"default", "tap_init=conv", "cka", "nested", "learned dilations"} <= set(metrics["directions"])
    read = PlantedResult.from_json(metrics).to_json()
    assert read == {name: part for name, part in metrics.items() if name != "provenance"}
    page = assert_self_contained(tmp_path / "planted" / "report.html")
    assert all(
        title in page for title in ("who recovers what", "identified correctly", "beyond cosine", "hierarchy", "Longer range")
    )
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "planted").rglob("*seed_*.json")}
    assert len(kept) == 58
    assert mtsae("planted", *options, "--out", tmp_path / "planted").code == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_planted_refuses_what_cannot_be_planted(mtsae: Callable[..., Any], tmp_path: Path) -> None:
    config = tmp_path / "planted.yaml"
    config.write_text("planted: {dim: 16}")
    assert_refused(
        mtsae("planted", "--config", config, "--out", tmp_path / "out"),
        "expected a field of PlantedConfig, got 'dim'",
        tmp_path / "out",
    )
    config.write_text("planted: {lags: [[4, 2]]}")
    assert_refused(mtsae("planted", "--config", config, "--out", tmp_path / "out"), "near < far", tmp_path / "out")


def test_paper_refuses_a_context_longer_than_the_models(
    mtsae: Callable[..., Any], tiny_model_dir: Path, text_file: Path, tmp_path: Path
) -> None:
    outcome = mtsae(
        "paper", "--model", tiny_model_dir, "--hook-name", HOOK, "--dataset", text_file, "--out", tmp_path / "paper"
    )
    assert_refused(outcome, "context_size of at most 64, the model's context, got 128", tmp_path / "paper")


def test_settings_that_could_only_fail_later_are_refused(mtsae: Callable[..., Any], tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("context_size: 96\n")
    refused = mtsae("paper", "--config", config, "--out", tmp_path / "out")
    assert_refused(refused, "context_size that divides the paper's batch of 2,048, got 96", tmp_path / "out")
    config.write_text("planted: {context_size: 32, lags: [[1, 2]]}\n")
    refused = mtsae("planted", "--config", config, "--out", tmp_path / "out")
    assert_refused(refused, "context_size of at least 64", tmp_path / "out")
    config.write_text("planted: {}\n")
    refused = mtsae("planted", "--config", config, "--d-sae", 100, "--out", tmp_path / "out")
    assert_refused(refused, "--d-sae of at least 160", tmp_path / "out")
    config.write_text("n_features: []\nforget: kjv\nretain: [sotu]\n")
    refused = mtsae("unlearn", tmp_path, "--config", config, "--out", tmp_path / "out")
    assert_refused(refused, "setting n_features", tmp_path / "out")


def test_paper_reads_the_pile_with_the_papers_model_alone() -> None:
    assert PaperSettings(model="pythia-70m").text == "monology/pile-uncopyrighted"
    assert PaperSettings(model="pythia-70m", dataset="embedded").text == "embedded"
    assert PaperSettings().text == "embedded"


def test_what_is_typed_goes_before_the_file_and_the_file_before_defaults(train: Callable[..., Any], tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("d-sae: 64\nlr: 0.5\nlog_every_n_steps: 1\nsae:\n  k: 6\n")
    outcome = train("--config", config, d_sae=16)
    assert outcome.code == 0, outcome.err
    settings = json.loads((tmp_path / "out" / "metrics.json").read_text())["provenance"]["settings"]
    assert (settings["d_sae"], settings["lr"], settings["log_every_n_steps"]) == (16, 0.5, 1)
    assert settings["sae"] == {"k": 6}
    assert settings["weight_decay"] == TrainSettings().weight_decay
    assert json.loads((tmp_path / "out" / "cfg.json").read_text())["k"] == 6


def test_set_changes_one_setting_of_the_file_and_leaves_the_others(tmp_path: Path, train: Callable[..., Any]) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("sae:\n  k: 6\n  dilations: [1, 3]\n")
    assert train("--config", config, "--set", "k=5").code == 0
    cfg = json.loads((tmp_path / "out" / "cfg.json").read_text())
    assert (cfg["k"], cfg["dilations"]) == (5, [1, 3])


def test_help_names_every_command(mtsae: Callable[..., Any]) -> None:
    outcome = mtsae("--help")
    assert outcome.code == 0
    assert all(
        command in outcome.out
        for command in ("train", "evaluate", "unlearn", "unlearn-benchmark", "generate", "export", "demo", "paper", "planted")
    )


def test_ctrl_c_exits_130(train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C exits 130; tests/training/test_resume.py has the signals from outside."""
    original = SequenceActivations.mixed

    def stopping(self: SequenceActivations, *args: Any, **kwargs: Any) -> Iterator[Any]:
        signal.raise_signal(signal.SIGINT)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(SequenceActivations, "mixed", stopping)
    assert train("--set", "normalize_activations=none", "--set", "k=4").code == 130


# ---------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        (
            {"hook_name": "blocks.0.hook_resid_pst"},
            (),
            r"expected a hook of .*, got 'blocks\.0\.hook_resid_pst'.*Did you mean 'blocks\.0\.hook_resid_post'",
        ),
        (
            {"context_size": 128, "batch_size_tokens": 128},
            (),
            "expected context_size of at most 64, the context of the model, got 128; lower it",
        ),
        (
            {"batch_size_tokens": 100},
            (),
            "expected train_batch_size_tokens to be a multiple of context_size=32, got 100; give 96",
        ),
        ({"training_tokens": 10}, (), "expected training_tokens of at least one batch \\(64 tokens\\), got 10; give more"),
        ({"architecture": "mtsea"}, (), "expected a known architecture, got 'mtsea'.*Did you mean 'mtsae'"),
        ({"d_sae": 0}, (), "setting d_sae: .*greater than 0, got 0"),
        ({"lr": -1}, (), r"setting lr: .*greater than 0, got -1$"),
        ({}, ("--set", "dilation=[1]"), "got 'dilation'.*Did you mean 'dilations'"),
        ({}, ("--set", "k"), "--set: expected NAME=VALUE, got 'k'; give such as --set k=16"),
        ({}, ("--set", "k=33"), "k from 1 to 32, the number of features .--d-sae., got 33"),
        ({}, ("--set", "padding=left"), "padding to be one of 'causal', 'circular', 'zero', got 'left'"),
        ({}, ("--set", "dilations=[-1]"), r"dilations .*whole numbers.*got \[-1\]"),
        ({}, ("--set", "k=abc"), "expected k to be a whole number, got 'abc'"),
        ({}, ("--set", "k=4.5"), r"expected k to be a whole number, got 4\.5"),
        ({}, ("--set", "k=["), r"--set k=\[: expected YAML, got an error"),
        ({}, ("--set", "dilations=3"), "dilations .*whole numbers.*got 3"),
        ({}, ("--set", "normalize_activations=banana"), "normalize_activations must be .*Got banana"),
        ({"architecture": "topk"}, ("--set", "k=33"), "k from 1 to 32, the number of features .--d-sae., got 33"),
        (
            {"architecture": "topk"},
            ("--set", "aux_loss_coefficient=1.0"),
            "expected k of at most d_sae=32, got 100; give a smaller k",
        ),
        ({"architecture": "topk"}, ("--set", "normalize_activations=covariance_whitening"), "covariance_whitening"),
        *(
            (
                {"architecture": architecture},
                ("--set", "k=4", "--set", f"normalize_activations={value}", *more),
                f"expected normalize_activations 'expected_average_only_in' or 'none' for architecture '{architecture}', got '{value}', .*; "
                "give --set normalize_activations=expected_average_only_in",
            )
            for architecture, more in (
                ("topk", ()),
                ("topk", ("--set", "aux_loss_coefficient=0.0")),
                ("abstopk", ()),
                ("batchtopk", ()),
                ("matryoshka_batchtopk", ("--set", "matryoshka_widths=[8,32]")),
            )
            for value in ("layer_norm", "constant_norm_rescale")
        ),
        ({"architecture": "matryoshka_batchtopk"}, ("--set", "k=4"), "matryoshka_widths must not be empty"),
        ({"device": "gpu"}, (), "expected a usable device, got 'gpu'.*give --device cpu"),
        ({"seed": 5_000_000_000}, (), "setting seed: .*got 5000000000"),
        ({"seed": -1}, (), "setting seed: .*got -1"),
        ({}, ("--set", "d_in=7"), "expected width d_in=7, that of the SAE, got 32 at .*; give the SAE d_in=32"),
        (
            {},
            ("--set", "normalize_activations=layer_norm"),
            "'expected_average_only_in' or 'none' for an MTSAE, got 'layer_norm'",
        ),
        (
            {},
            ("--set", "normalize_activations=covariance_whitening"),
            "'expected_average_only_in' or 'none' for an MTSAE, got 'covariance_whitening'",
        ),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict | tuple) else "",
)
def test_bad_settings(
    train: Callable[..., Any], tmp_path: Path, changes: dict[str, Any], more: tuple[str, ...], message: str
) -> None:
    assert_refused(train(*more, **changes), message, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rate: 0.1\n", "expected a known setting, got 'learning_rate'"),
        ("d_sea: 3\n", "expected a known setting, got 'd_sea'.*Did you mean 'd_sae'"),
        ("d_sae: [1\n", "expected YAML"),
        ("\t- x", "expected YAML"),
        ("just words\n", "a mapping of settings to values"),
        ("", "a mapping of settings to values"),
        ("checkpoint_every_n_steps: often\n", "setting checkpoint_every_n_steps: .*got 'often'"),
        ("sae: 3\n", "setting sae: .*got 3"),
        (b"\xff\xfe\x00", "expected YAML in UTF-8"),
        (None, "--config .*: expected a readable file, got the error No such file"),
    ],
)
def test_bad_config_files(train: Callable[..., Any], tmp_path: Path, content: str | bytes | None, message: str) -> None:
    config = tmp_path / "c.yaml"
    if content is not None:
        config.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_refused(train("--config", config), message, tmp_path / "out")


# ---------------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", r"empty\.txt: expected at least one non-empty document"),
        ("binary.txt", bytes(range(256)) * 9, r"binary\.txt: expected text, got binary data"),
        (
            "latin.txt",
            "na\u00efve ".encode("latin-1") * 99,
            r"latin\.txt: expected UTF-8, got something else at byte 2; convert it with: iconv",
        ),
        ("notext.jsonl", b'{"body": "x"}\n', r"notext\.jsonl:1: expected an object with a string under 'text'"),
        ("bad.jsonl", b"{\n", r"bad\.jsonl:1: expected one JSON object per line"),
        ("bad.parquet", b"x" * 99, r"bad\.parquet: expected a parquet file"),
        ("some.pdf", b"x", r"expected a file that ends with one of \.txt, \.jsonl, \.parquet .* got \.pdf; convert it"),
        ("short.txt", b"Too short.", "training documents that fill a context of 32 tokens, got none; give more text"),
    ],
)
def test_bad_texts(train: Callable[..., Any], tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert_refused(train(dataset=tmp_path / name), message, tmp_path / "out")


def test_parquet_without_text(train: Callable[..., Any], tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"], "n": [1]}), tmp_path / "a.parquet")
    assert_refused(train(dataset=tmp_path / "a.parquet"), "expected a column 'text', got body, n", tmp_path / "out")


@pytest.mark.parametrize("dataset", ["missing.txt", "/missing/a.jsonl", "nothing"])
def test_missing_text(train: Callable[..., Any], tmp_path: Path, dataset: str) -> None:
    assert_refused(
        train(dataset=dataset),
        f"expected a file, a folder, an embedded domain or owner/name on the hub, got '{dataset}'",
        tmp_path / "out",
    )


def test_the_hub_offline(train: Callable[..., Any], tmp_path: Path) -> None:
    outcome = train(dataset="monology/pile-uncopyrighted")
    assert_refused(
        outcome, "'monology/pile-uncopyrighted' cannot be read from the Hugging Face hub.*or 'embedded'", tmp_path / "out"
    )
    outcome = train(model="pythia-70m")
    assert_refused(
        outcome,
        "pythia-70m: expected the model in the local cache or a reachable Hugging Face hub.*give --model embedded",
        tmp_path / "out",
    )


# ---------------------------------------------------------------------------------------------- models and SAEs


def test_unknown_models(train: Callable[..., Any], tmp_path: Path) -> None:
    assert_refused(
        train(model="pythia-70"), "expected a model folder.* got 'pythia-70'.*Did you mean .*'pythia-70m'", tmp_path / "out"
    )
    assert_refused(
        train(model=tmp_path), r"expected config\.json, got none; give a Hugging Face model folder", tmp_path / "out"
    )


def test_nan_weights(train: Callable[..., Any], tmp_path: Path, tiny_model_dir: Path) -> None:
    folder = shutil.copytree(tiny_model_dir, tmp_path / "nan")
    weights = load_file(folder / "model.safetensors")
    weights["gpt_neox.layers.0.mlp.dense_h_to_4h.weight"] *= float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert_refused(train(model=folder), "nan", tmp_path / "out")


def test_an_sae_of_another_width(mtsae: Callable[..., Any], tiny_sae_dir: Path, tmp_path: Path) -> None:
    outcome = mtsae("evaluate", tiny_sae_dir, "--model", "embedded", "--out", tmp_path / "out")
    assert_refused(outcome, "an SAE with d_in=128 for .* of embedded, got d_in=32", tmp_path / "out")


def test_an_sae_of_a_longer_context(mtsae: Callable[..., Any], save_neox: Any, tiny_sae_dir: Path, tmp_path: Path) -> None:
    short = save_neox(tmp_path / "short", max_position_embeddings=16)
    assert_refused(mtsae("evaluate", tiny_sae_dir, "--model", short, "--out", tmp_path / "out"), "context", tmp_path / "out")


def test_a_reference_of_a_shorter_context(
    mtsae: Callable[..., Any], save_neox: Any, tiny_sae_dir: Path, tmp_path: Path, text_file: Path, sea_file: Path
) -> None:
    short = save_neox(tmp_path / "short", max_position_embeddings=16)
    config = tmp_path / "c.yaml"
    config.write_text("contexts_per_split: 2\nmin_ratio: 0.1\nfar_budget: 50\nn_features: [2]\n")
    arguments = (
        "--forget",
        sea_file,
        "--retain",
        text_file,
        "--reference",
        short,
        "--config",
        config,
        "--out",
        tmp_path / "out",
    )
    assert_refused(mtsae("unlearn", tiny_sae_dir, *arguments), "context", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "cfg.json",
            None,
            r"expected cfg\.json in this folder, got no such file; give the --out folder of a finished 'mtsae train'",
        ),
        ("sae_weights.safetensors", None, r"expected sae_weights\.safetensors in this folder, got no such file"),
        ("sae_weights.safetensors", b"garbage" * 99, r"got one that cannot be loaded \(SafetensorError"),
        ("sae_weights.safetensors", b"", r"got one that cannot be loaded \(SafetensorError"),
        ("cfg.json", b'{"architecture": ', r"got one that cannot be loaded \(JSONDecodeError"),
        ("cfg.json", b"\xff\xff", r"got one that cannot be loaded \(UnicodeDecodeError"),
        ("cfg.json", b'{"architecture": "other", "dtype": "float32", "device": "cpu"}', "got one that cannot be loaded.*other"),
    ],
)
def test_broken_saes(
    mtsae: Callable[..., Any], tiny_sae_dir: Path, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    folder = shutil.copytree(tiny_sae_dir, tmp_path / "sae")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    for command in (("evaluate",), ("unlearn", "--forget", "kjv", "--retain", "sotu")):
        outcome = mtsae(command[0], folder, *command[1:], "--out", tmp_path / "out")
        assert_refused(outcome, message, tmp_path / "out")


def test_a_missing_sae(mtsae: Callable[..., Any], tmp_path: Path) -> None:
    assert_refused(mtsae("evaluate", tmp_path / "no", "--out", tmp_path / "out"), r"no/?: expected cfg\.json", tmp_path / "out")


def test_unlearn_says_what_is_missing(mtsae: Callable[..., Any], tiny_sae_dir: Path, text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert_refused(mtsae("unlearn", tiny_sae_dir, "--out", out), "expected --forget, got none", out)
    assert_refused(mtsae("unlearn", tiny_sae_dir, "--out", out, "--forget", text_file), "expected --retain, got none", out)
    outcome = mtsae("unlearn", tiny_sae_dir, "--out", out, "--forget", text_file, "--retain", "shakespear")
    assert_refused(outcome, "'shakespear'.*Did you mean 'shakespeare'", out)


def test_a_text_that_is_given_twice_is_not_left_out(
    mtsae: Callable[..., Any], train: Callable[..., Any], tiny_sae_dir: Path, text_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    joined = r"--{0}: expected one text, got several; join the texts with '\+', such as --{0} FIRST\+SECOND"
    twice = ("--forget", text_file, "--forget", "kjv", "--retain", "sotu", "--out", out)
    assert_refused(mtsae("unlearn", tiny_sae_dir, *twice), joined.format("forget"), out)
    assert_refused(mtsae("unlearn-benchmark", *twice), joined.format("forget"), out)
    assert_refused(train("--dataset", "kjv"), joined.format("dataset"), out)
    assert train(dataset=f"{text_file}+kjv").code == 0


def test_unlearn_refuses_an_sae_that_cannot_generate_before_any_work(
    mtsae: Callable[..., Any], train: Callable[..., Any], text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtsae_lens.commands.unlearn.choose", lambda *_: pytest.fail("it went to work"))
    for name, settings, hook_name, message in (
        ("circular", ("--set", "k=4", "--set", "padding=circular"), HOOK, "reads later positions"),
        ("embed", (), "hook_embed", "got hook_embed, where an edit changes nothing"),
    ):
        assert train(*settings, out=tmp_path / name, hook_name=hook_name).code == 0
        outcome = mtsae("unlearn", tmp_path / name, "--forget", text_file, "--retain", "sotu", "--out", tmp_path / "out")
        assert_refused(outcome, message, tmp_path / "out")


def test_unlearn_refuses_questions_that_do_not_fit_before_any_work(
    mtsae: Callable[..., Any], train: Callable[..., Any], text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtsae_lens.commands.unlearn.choose", lambda *_: pytest.fail("it went to work"))
    assert train(out=tmp_path / "sae", context_size=16).code == 0
    given = ("--forget", text_file, "--retain", "sotu", "--neutral", "facts:strangers:known", "--out", tmp_path / "out")
    message = "facts:strangers:known: expected questions of at most 16 tokens, got "
    assert_refused(mtsae("unlearn", tmp_path / "sae", *given), message, tmp_path / "out")


# ---------------------------------------------------------------------------------------------- output


def test_unwritable_out(mtsae: Callable[..., Any], train: Callable[..., Any], tiny_sae_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for out in (tmp_path / "file", tmp_path / "file" / "sub"):
        message = f"--out {out}: expected a writable folder, got .*; give a folder that you may write to"
        assert_refused(train(out=out), message)
        assert_refused(mtsae("evaluate", tiny_sae_dir, "--out", out), message)
        assert_refused(mtsae("unlearn", tiny_sae_dir, "--forget", "kjv", "--retain", "sotu", "--out", out), message)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_run_is_not_written_over(train: Callable[..., Any], tiny_sae_dir: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in files_in(tiny_sae_dir)}
    assert_refused(train(out=tiny_sae_dir), "holds a run already; give --resume, or another --out")
    assert {path: path.stat().st_mtime_ns for path in files_in(tiny_sae_dir)} == before


def test_resuming_with_other_settings(train: Callable[..., Any], tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("checkpoint_every_n_steps: 2\n")
    assert train("--config", config, "--set", "k=4").code == 0
    outcome = train("--config", config, "--set", "k=5", "--resume")
    assert_refused(outcome, r"made with other settings \(sae\.k: 4 then, 5 now\); resume with the same, or give a new --out")


def test_disk_full_at_the_metrics(
    mtsae: Callable[..., Any], tiny_sae_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    outcome = mtsae("evaluate", tiny_sae_dir, "--out", tmp_path / "out", "--n-contexts", 4)
    assert_refused(outcome, r"metrics\.json: expected to write this file, got No space left on device", tmp_path / "out")


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Real failing writes, from Python and from safetensors' Rust: 'File too large'."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_report_that_does_not_fit(train: Callable[..., Any], tmp_path: Path) -> None:
    with files_of_at_most(200_000):
        outcome = train()
    assert outcome.code == 2
    assert re.search(r"report\.html: expected to write this file, got File too large", outcome.error)
    assert not [path for path in files_in(tmp_path / "out") if "report" in path.name]


@pytest.mark.parametrize(
    ("size", "config"),
    [
        pytest.param(1_500, "log_every_n_steps: 100\n", id="weights"),
        pytest.param(1_500, "checkpoint_every_n_steps: 2\nlog_every_n_steps: 100\n", id="checkpoint"),
        pytest.param(1_500, "log_every_n_steps: 1\n", id="log"),
    ],
)
def test_disk_full_while_training(train: Callable[..., Any], tmp_path: Path, size: int, config: str) -> None:
    (tmp_path / "c.yaml").write_text(config)
    with files_of_at_most(size):
        outcome = train("--config", tmp_path / "c.yaml", "--set", "k=4")
    assert outcome.code == 2
    assert re.search("expected to write (this file|the log), got .*File too large", outcome.error)
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_an_error_of_ours_is_not_swallowed(mtsae: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that the user did not cause is raised with its traceback."""
    monkeypatch.setattr("mtsae_lens.commands.evaluate.run_evaluate", lambda settings: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mtsae("evaluate", "x")
    monkeypatch.setattr(
        "mtsae_lens.commands.evaluate.run_evaluate", lambda settings: (_ for _ in ()).throw(ConfigError("mine"))
    )
    assert mtsae("evaluate", "x").error == "error: mine"


def test_the_version(mtsae: Callable[..., Any]) -> None:
    assert mtsae("--version").out == f"mtsae-lens {mtsae_lens.__version__}\n"
    assert (
        mtsae_lens.__version__
        == tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["version"]
    )
