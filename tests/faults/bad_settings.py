"""Try invalid settings: every settings class from YAML, `--set`, and configuration files of any content."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from faults.findings import Finding, attempt, shorten
from faults.junk import value, yaml_text
from faults.runner import Family
from faults.workplace import Workplace
from mtsae_lens.commands.explore import ExploreSettings
from mtsae_lens.commands.unlearn import UnlearnSettings
from mtsae_lens.data.planted import PlantedFeatures
from mtsae_lens.experiments.planted.run import PlantedCommandSettings, make_trial_settings
from mtsae_lens.settings import Settings, parse_assignments
from mtsae_lens.training.recipe import TrainSettings, runner_config
from mtsae_lens.upstream import SAE_TRAINING_CLASS_REGISTRY

_SECONDS = 5.0
_D_IN = 128
_FURTHER: dict[type[Settings], Callable[[Any], object]] = {
    TrainSettings: lambda settings: runner_config(settings, _D_IN),
    ExploreSettings: lambda settings: settings.plan,
    UnlearnSettings: lambda settings: (settings.task(), settings.protocol()),
    PlantedCommandSettings: lambda settings: _plant(make_trial_settings(settings).planted),
}
"""What a command makes of its settings before it begins to work."""


def _plant(planted: Any) -> object:
    small = all(isinstance(number, int) and number < 10_000 for number in (planted.d_in, planted.context_size))
    return PlantedFeatures(planted) if small else None


def _classes() -> list[type[Settings]]:
    return sorted(Settings.__subclasses__(), key=lambda kind: kind.__name__)


def _use(settings: Settings) -> str:
    _FURTHER.get(type(settings), lambda settings: None)(settings)
    json.dumps(settings.model_dump(mode="json"), allow_nan=False).encode()  # as they are recorded after hours of work
    return "done"


def settings_class(workplace: Workplace, rng: random.Random, folder: Path) -> Finding:
    """A YAML file of a settings class, with values of any kind."""
    kind = rng.choice(_classes())
    needed = {
        "sae": "sae",
        "edit": "edit.json",
        "prompt": "x",
        "forget": "a",
        "retain": ["b"],
        "facts": "facts",
        "repo_id": "a/b",
    }
    content: dict[Any, Any] = {name: given for name, given in needed.items() if name in kind.model_fields}
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name = rng.choice([*kind.model_fields]) if rng.random() < 0.95 else str(value(rng, 3))
        content[name] = value(rng)
    if "sae" in content and kind is TrainSettings:
        content["sae"] = _of_the_architecture(rng)
    text = _as_yaml(content, rng)
    path = folder / "settings.yaml"
    path.write_text(text, errors="surrogatepass")
    outcome, detail = attempt(lambda: _use(kind.build(path, {})), _SECONDS)
    return Finding(outcome, f"{kind.__name__} from {shorten(text, 200)}", detail)


def _as_yaml(content: dict[Any, Any], rng: random.Random) -> str:
    if rng.random() < 0.3:
        lines = [f"{name}: {yaml_text(rng) if rng.random() < 0.5 else json.dumps(given)}" for name, given in content.items()]
        return "\n".join(lines)
    try:
        return yaml.safe_dump(content, allow_unicode=True)
    except yaml.YAMLError:
        return json.dumps(content)


def _fields(architecture: str) -> list[str]:
    return [*(field.name for field in fields(SAE_TRAINING_CLASS_REGISTRY[architecture][1])), "no_such_setting"]


def _of_the_architecture(rng: random.Random) -> Any:
    names = _fields("mtsae")
    return value(rng) if rng.random() < 0.2 else {rng.choice(names): value(rng) for _ in range(rng.randint(1, 2))}


def assignment(workplace: Workplace, rng: random.Random, folder: Path) -> Finding:
    """`--set` with values of any kind, on to the architecture's settings."""
    architecture = rng.choice(("mtsae", *sorted(SAE_TRAINING_CLASS_REGISTRY)))
    given = [f"{rng.choice(_fields(architecture))}={yaml_text(rng)}" for _ in range(rng.choice((1, 1, 2)))]
    if rng.random() < 0.05:
        given.append(str(value(rng, 3)))
    outcome, detail = attempt(
        lambda: _use(TrainSettings.build(None, {"architecture": architecture, "sae": parse_assignments(given)})), _SECONDS
    )
    return Finding(outcome, f"{architecture} --set {shorten(given, 200)}", detail)


def yaml_file(workplace: Workplace, rng: random.Random, folder: Path) -> Finding:
    """A configuration file of any content."""
    path = folder / "config.yaml"
    draw = rng.random()
    if draw < 0.15:
        path.write_bytes(rng.randbytes(rng.randrange(200)))
    elif draw < 0.2:
        path.mkdir()
    elif draw < 0.6:
        path.write_text("\n".join(f"{rng.choice(('k', 'seed', 'out', 'sae', 'd_sae'))}: {yaml_text(rng)}" for _ in range(2)))
    else:
        path.write_text(yaml_text(rng))
    shown = shorten(path.read_bytes() if path.is_file() else "a folder")
    kind = rng.choice(_classes())
    outcome, detail = attempt(lambda: _use(kind.build(path, {})), _SECONDS)
    return Finding(outcome, f"{kind.__name__} from {shown}", detail)


_PROMISE = "A setting that cannot be used is refused in one line before any work begins."


def _family(name: str, trial: Any, method: str, count: int) -> Family:
    return Family(name, _PROMISE, method, trial, count, 60, injects=False, seconds=_SECONDS, per_process=250)


FAMILIES = [
    _family("input/settings", settings_class, "every settings class built from YAML with one to three odd values", 4000),
    _family("input/set", assignment, "`--set NAME=VALUE` with odd YAML, up to SAELens's configuration", 2500),
    _family("input/yaml", yaml_file, "configuration files of odd YAML or random bytes, and folders in their place", 1500),
]
