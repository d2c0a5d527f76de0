"""Provide what the trials share: the embedded model, two texts, a small SAE, and the undisturbed results of every command."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml

import mtsae_lens.cli
from faults.forks import Child
from mtsae_lens.checksums import CHECKSUMS_FILE
from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.sealed import DIGEST
from mtsae_lens.training.log import LOG_FILE

MODEL = "embedded"
HOOK = "blocks.1.hook_resid_post"
CONTEXT = 32
D_SAE = 64
_WORDS = {
    "land": "the cat dog king queen tree river sat ran fell on under over bread sword moon sun old red quickly and but",
    "sea": "ship storm sail harbour captain wave salt rope fish anchor of a in with north wind blue deep sailed sank",
}
_SETTINGS: dict[str, dict[str, Any]] = {
    "train": {
        "model": MODEL,
        "hook_name": HOOK,
        "d_sae": D_SAE,
        "training_tokens": 8 * 4 * CONTEXT,
        "context_size": CONTEXT,
        "batch_size_tokens": 4 * CONTEXT,
        "checkpoint_every_n_steps": 3,
        "log_every_n_steps": 1,
        "sae": {"k": 4},
    },
    "explore": {
        "n_tokens": 1500,
        "n_examples": 3,
        "n_sampled": 2,
        "n_ablated": 1,
        "n_attributed": 1,
        "n_attribution_contexts": 4,
        "n_text_contexts": 3,
    },
    "unlearn": {
        "scores": ["frequency_ratio"],
        "n_features": [2],
        "edits": ["scale"],
        "multipliers": [1.0],
        "false_positive_rates": [None],
        "min_ratio": 0.1,
        "far_budget": 100.0,
        "near_budget": 100.0,
        "n_random_draws": 1,
        "contexts_per_split": 4,
    },
    "planted": {
        "n_seeds": 1,
        "n_direction_seeds": 0,
        "n_steps": 2,
        "d_sae": 64,
        "n_test_sequences": 2,
        "n_workers": 1,
        "planted": {"d_in": 16, "durations": [4], "lags": [[1, 2]], "context_size": 32},
    },
    "demo": {
        "training_tokens": 2048,
        "d_sae": 32,
        "k": 4,
        "n_eval_contexts": 4,
        "n_shown_features": 1,
        "near": [],
        "retain": ["austen"],
        "contexts_per_split": 2,
        "n_explored_tokens": 0,
    },
}


class Workplace:
    """A folder with everything that a trial reads; trials copy what they damage."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        for seed, (name, words) in enumerate(_WORDS.items()):
            self.text(name).write_text(make_text(words.split(), 900, seed))
        for name, settings in _SETTINGS.items():
            self.config(name).write_text(yaml.safe_dump(settings))

    def text(self, name: str) -> Path:
        """`land` or `sea`."""
        return self.folder / f"{name}.txt"

    def config(self, verb: str) -> Path:
        """The YAML file of a command's settings."""
        return self.folder / f"{verb}.yaml"

    def arguments(self, verb: str) -> tuple[str, ...]:
        """Return the arguments of a command that writes into the folder `run` of its working directory."""
        given: tuple[Path | str, ...] = ()
        match verb:
            case "train":
                given = ("--dataset", self.text("land"))
            case "explore":
                given = (self.sae, "--dataset", self.text("land"), "--dataset", self.text("sea"))
            case "unlearn":
                given = (self.sae, "--forget", self.text("sea"), "--retain", self.text("land"))
            case "export":
                given = (self.sae, "--edit", self.edit)
        config = ("--config", self.config(verb)) if self.config(verb).exists() else ()
        return tuple(map(str, (verb, *given, *config, "--out", "run")))

    def make(self, verb: str) -> Path:
        """Return what a command writes if it is not disturbed."""
        folder = self.folder / f"made-{verb}"
        folder.mkdir()
        arguments = self.arguments(verb)
        ended = Child(lambda: run_command(arguments), folder).wait(300)
        if ended.code != 0:
            raise RuntimeError(f"mtsae {' '.join(arguments)} failed undisturbed: {ended.err}")
        return folder / "run"

    @cached_property
    def sae(self) -> Path:
        """A trained SAE."""
        return self.make("train")

    @cached_property
    def edit(self) -> Path:
        """An edit of it."""
        return self.make("unlearn") / "edit.json"

    @cached_property
    def facts(self) -> Path:
        """Facts about its features."""
        return self.make("explore")

    @cached_property
    def exported(self) -> Path:
        """An exported model."""
        return self.make("export") / "model"


def make_text(words: list[str], n_lines: int, seed: int) -> str:
    """Sentences of random words."""
    rng = random.Random(seed)
    return "\n".join(" ".join(rng.choice(words) for _ in range(rng.randrange(6, 16))) + "." for _ in range(n_lines))


def run_command(arguments: tuple[str, ...]) -> None:
    """`mtsae ARGUMENTS` in this process; it ends as `main` does."""
    sys.argv = ["mtsae", *arguments]
    mtsae_lens.cli.main()


def prepare_process() -> None:
    """Load what every child process needs, so that the children need not load it."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.dont_write_bytecode = True  # or a module loaded in a trial would count as a file operation of the command
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads would be missing after a fork
    torch.set_num_threads(1)
    for name in ("train", "evaluate", "explore", "unlearn", "generate", "export", "upload", "neuronpedia"):
        importlib.import_module(f"mtsae_lens.commands.{name}")
    _keep_loaded(load_language_model)


def _keep_loaded(load: Callable[..., Any]) -> None:
    """Make every module that loads the embedded model in float32 on the CPU use the model that is already loaded."""
    loaded = load(MODEL)

    def load_or_take(name: str, *arguments: Any, **options: Any) -> Any:
        plain = not arguments and options.get("device", "cpu") == "cpu" and options.get("dtype", "float32") == "float32"
        return loaded if name == MODEL and plain else load(name, *arguments, **options)

    for module in list(sys.modules.values()):
        if (
            module is not None
            and getattr(module, "__name__", "").startswith("mtsae_lens")
            and "load_language_model" in vars(module)
        ):
            module.load_language_model = load_or_take  # type: ignore[attr-defined]


def contents(folder: Path) -> dict[str, Any]:
    """Return the contents of a folder by file, without times and figures, which may differ between two runs of a command."""
    return {
        str(path.relative_to(folder)): _content(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }


def _content(path: Path) -> Any:
    if path.suffix == ".html" or path.match("page/data/explore-*.js"):
        return "a page"
    if path.name == CHECKSUMS_FILE:  # one of them covers the times in the log
        return sorted(line for line in path.read_text(errors="replace").splitlines() if not line.endswith(LOG_FILE))
    if path.suffix != ".json" and path.name != LOG_FILE:
        return sha256(path)
    try:
        if path.name == LOG_FILE:
            return [without_times(json.loads(line)) for line in path.read_text().splitlines()]
        content = json.loads(path.read_text())
    except (ValueError, RecursionError):
        return "no JSON"
    if isinstance(content, dict) and "provenance" in content:
        content.pop(DIGEST, None)  # which covers the times
    return without_times(content)


def without_times(value: Any) -> Any:
    """JSON without what differs from run to run."""
    if isinstance(value, dict):
        timed = ("provenance", "seconds", "resumed", "waits")
        return {k: without_times(inner) for k, inner in value.items() if k not in timed and not k.startswith("time/")}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


def sha256(path: Path) -> str:
    """Digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def differences(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """Describe the files in which two folders differ; empty if they are equal."""
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    other = sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name])
    parts = {"missing": missing, "left over": extra, "other content": other}
    return "; ".join(f"{what}: {', '.join(names[:4])}" for what, names in parts.items() if names)


def copy(folder: Path, to: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(folder, to)
    return to
