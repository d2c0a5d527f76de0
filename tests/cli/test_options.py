"""Test that every setting has an option with its description, and that the text of the option reaches the setting."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from mtsae_lens.cli import app
from mtsae_lens.cli.options import option_name
from mtsae_lens.cli.verbs import VERBS
from mtsae_lens.commands.export_settings import ExportSettings
from mtsae_lens.commands.unlearn_settings import UnlearnSettings
from mtsae_lens.data.planted import PlantedConfig
from mtsae_lens.errors import ConfigError
from mtsae_lens.experiments.benchmark.arms import SAES, TASKS, BenchmarkSize
from mtsae_lens.experiments.benchmark.settings import BenchmarkSettings
from mtsae_lens.experiments.paper.settings import PaperSettings
from mtsae_lens.experiments.planted.arms import N_SIDE_SEEDS
from mtsae_lens.experiments.planted.settings import PlantedCommandSettings
from mtsae_lens.experiments.planted.training import PlantedSettings
from mtsae_lens.exploration.plan import Plan
from mtsae_lens.export.low_rank import LowRankSettings
from mtsae_lens.sae.config import ARCHITECTURE
from mtsae_lens.settings import Settings
from mtsae_lens.training.settings import TrainSettings
from mtsae_lens.unlearning.candidates import Grid
from mtsae_lens.unlearning.protocol import UnlearningSettings
from mtsae_lens.unlearning.task import Task

VERB_NAMES = [run.__name__.replace("_", "-") for run in VERBS]


def settings_of(verb: str) -> type[Settings]:
    run = next(run for run in VERBS if run.__name__.replace("_", "-") == verb)
    return inspect.get_annotations(run, eval_str=True)["settings"]


def given(*words: Any) -> dict[str, Any]:
    """The settings that a command line gives, as texts."""
    _, bound, _ = app.parse_args([str(word) for word in words], exit_on_error=False, print_error=False)
    return dict(bound.arguments)


def test_every_settings_class_is_that_of_a_verb() -> None:
    ours = {kind for kind in Settings.__subclasses__() if kind.__module__.startswith("mtsae_lens.")}
    assert ours == {settings_of(verb) for verb in VERB_NAMES}


@pytest.mark.parametrize("verb", VERB_NAMES)
def test_every_setting_is_an_option_with_a_whole_sentence(verb: str) -> None:
    options = {name: option for option in app[verb].assemble_argument_collection() for name in option.names}
    for name, field in settings_of(verb).model_fields.items():
        assert field.description, name
        assert re.match(r"[A-Z`].*[.]$", field.description, flags=re.DOTALL), field.description
        assert " ".join(field.description.split()) in options[option_name(name, field)].parameter.help
    assert options["--config"].parameter.help


@pytest.mark.parametrize("verb", VERB_NAMES)
def test_the_help_of_a_verb_shows_every_option(verb: str, mtsae: Any) -> None:
    outcome = mtsae(verb, "--help")
    assert outcome.code == 0
    words = set(re.findall(r"--[\w-]+", outcome.out))
    assert {option_name(name, field) for name, field in settings_of(verb).model_fields.items()} | {"--config"} <= words


def test_only_what_is_given_overrides_the_file(tmp_path: Path) -> None:
    assert given("train", "--seed", 0, "--packed") == {"seed": "0", "packed": True}
    config = tmp_path / "c.yaml"
    config.write_text("seed: 5\nlr: 0.5\npacked: false\nsae: {k: 3, dilations: [0, 1]}\n")
    found = TrainSettings.build(config, {"seed": "0", "packed": True, "sae": {"k": 4}})
    assert (found.seed, found.lr, found.packed) == (0, 0.5, True)
    assert found.sae == {"k": 4, "dilations": [0, 1]}


def test_kinds_of_values() -> None:
    words = ("x", "--forget", "kjv", "--retain", "sotu", "--retain", "austen", "--n-features", 2, "--multipliers", "1e-1")
    typed = given("unlearn", *words, "--multipliers", -2, "--false-positive-rates", "null", "--false-positive-rates", 0.1)
    found = UnlearnSettings.build(None, typed)
    assert (found.sae, found.forget, found.retain) == (Path("x"), "kjv", ("sotu", "austen"))
    assert (found.n_features, found.multipliers, found.false_positive_rates) == ((2,), (0.1, -2.0), (None, 0.1))
    typed = given("unlearn-benchmark", "--reference", "null", "--task", "people", "--no-quick", "--no-prepend-bos")
    assert typed == {"reference": None, "tasks": ["people"], "quick": False, "prepend_bos": False}
    assert given("explore", "x", "--dataset", "a", "--dataset", "b") == {"sae": "x", "dataset": ["a", "b"]}
    assert given("train", "--set", "k=4", "--set", "dilations=[0, 1]", "--resume") == {
        "sae": ["k=4", "dilations=[0, 1]"],
        "resume": True,
    }


def test_a_project_of_wandb_turns_logging_on() -> None:
    assert TrainSettings.build(None, given("train", "--wandb-project", "p")).wandb
    assert not TrainSettings.build(None, given("train", "--wandb-project", "p", "--no-wandb")).wandb
    assert not TrainSettings.build(None, {}).wandb


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "--sed", 3), "Unknown option: --sed. Did you mean --seed?"),
        (("trian",), 'Unknown command "trian". Did you mean "train"?'),
        (("train", "--seed", "abc"), "--seed: expected a whole number, got 'abc'"),
        (("train", "--seed", "-1"), "setting seed: expected a number of at least 0, got -1"),
        (("train", "--dtype", "float64"), "--dtype: expected 'float32', 'bfloat16' or 'float16', got 'float64'"),
        (("unlearn", "x", "--multipliers", "1", "--multipliers", "b"), "--multipliers: expected a number, got 'b'"),
        (("train", "--seed"), "--seed requires an argument"),
        (("train", "x"), "expected a known option, got 'x'; see --help"),
        (("train", "--packed=maybe"), '--packed: unable to convert "maybe" into bool'),
        (("train", "--set", "k"), "--set: expected NAME=VALUE, got 'k'; give such as --set k=16"),
        (("planted", "--planted", "d_in"), "--planted: expected NAME=VALUE"),
        (("train", "--out", ""), "setting out: expected a value, got an empty text"),
        (("evaluate",), "expected --sae, got none"),
    ],
)
def test_bad_options_are_refused_in_one_line(words: tuple[Any, ...], message: str, mtsae: Any) -> None:
    outcome = mtsae(*words)
    assert outcome.code == 2
    assert message in outcome.error


def test_an_option_that_is_given_twice_warns(mtsae: Any) -> None:
    outcome = mtsae("train", "--seed", 1, "--seed=2", "--set", "k=1", "--set", "l=2", "--lr", "fast")
    assert outcome.code == 2
    assert outcome.err.count("warning") == 0  # an error is said alone
    outcome = mtsae("train", "--lr", 1, "--lr", 0)
    assert outcome.err.splitlines()[0] == "warning: --lr is given 2 times; the last value is used"
    assert outcome.error == "error: setting lr: expected a number greater than 0, got 0"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_verbs_and_options(shell: Any) -> None:
    script = app.generate_completion(shell=shell)
    assert all(word in script for word in ("unlearn-benchmark", "false-positive-rates", "install-completion"))


def test_defaults_agree_with_what_the_settings_stand_for() -> None:
    """Settings repeat some defaults, because the modules that hold them load torch."""
    assert TrainSettings().architecture == ARCHITECTURE
    unlearn = UnlearnSettings(sae=Path("x"), forget="kjv", retain=("sotu",))
    assert unlearn.protocol() == UnlearningSettings(grid=Grid())
    assert unlearn.contexts_per_split == Task.contexts_per_split
    export = ExportSettings(sae=Path("x"), edit=Path("y"))
    assert (export.rank, export.n_steps, export.lr) == (LowRankSettings.rank, LowRankSettings.n_steps, LowRankSettings.lr)
    planted = PlantedCommandSettings()
    assert (planted.n_steps, planted.d_sae) == (PlantedSettings.n_steps, PlantedSettings.d_sae)
    assert (planted.n_test_sequences, planted.n_direction_seeds) == (PlantedSettings.n_test_sequences, N_SIDE_SEEDS)
    assert PaperSettings().n_planted_steps == PlantedSettings.n_steps
    benchmark = BenchmarkSettings()
    assert (benchmark.tasks, benchmark.saes, benchmark.size()) == (tuple(TASKS), SAES, BenchmarkSize())
    sizes = app["explore"].assemble_argument_collection()
    assert {name.replace("_", "-") for name in Plan.__dataclass_fields__} <= {option.name.lstrip("-") for option in sizes}


def test_a_field_of_what_is_planted() -> None:
    typed = given("planted", "--planted", "d_in=16", "--planted", "durations=[1, 8]")
    assert typed == {"planted": ["d_in=16", "durations=[1, 8]"]}
    assert "d_in" in PlantedConfig.__dataclass_fields__


def test_a_text_that_is_no_setting_is_an_error_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("sed: 1\n")
    with pytest.raises(ConfigError, match=r"expected a known setting, got 'sed'\. Did you mean 'seed'"):
        TrainSettings.build(tmp_path / "c.yaml", given("train", "--lr", 1))
