"""Try invalid command lines, through the whole command line."""

from __future__ import annotations

import random
from functools import cache, partial
from pathlib import Path
from typing import Any

from faults.findings import Finding, of_command, shorten
from faults.forks import Child
from faults.junk import value, yaml_text
from faults.runner import Family
from faults.workplace import Workplace, run_command
from mtsae_lens.cli import app

_SECONDS = 30.0
_LARGEST = 300  # of a number that is taken: a long run is no fault
_VERBS = ("train", "evaluate", "explore", "unlearn", "generate", "export", "upload", "export-neuronpedia")


def _base(verb: str, workplace: Workplace) -> list[str]:
    """A command line that works, and in no time."""
    match verb:
        case "train" | "explore" | "unlearn" | "export":
            return list(workplace.arguments(verb))
        case "evaluate":
            return [verb, str(workplace.sae), "--n-contexts", "4", "--out", "run"]
        case "generate":
            return [verb, str(workplace.sae), "--edit", str(workplace.edit), "--prompt", "the king", "--max-new-tokens", "2"]
        case "upload":
            return [verb, str(workplace.sae), "me/sae", "--dry-run", "run"]
        case _:
            return [verb, str(workplace.facts), "--out", "run"]


@cache
def _options(verb: str) -> list[tuple[str, bool]]:
    """Options of a verb, and whether each takes a value."""
    options = app[verb].assemble_argument_collection()
    return [(name, not option.is_flag()) for option in options for name in option.names if name.startswith("--")]


def _word(rng: random.Random, workplace: Workplace) -> str:
    draw = rng.random()
    if draw < 0.2:
        made = (
            workplace.sae,
            workplace.edit,
            workplace.facts,
            workplace.text("land"),
            workplace.folder,
            workplace.config("train"),
        )
        return str(rng.choice(made))
    if draw < 0.35:
        return yaml_text(rng)
    junk = value(rng)
    if isinstance(junk, int | float) and abs(junk) > _LARGEST:
        junk = -junk if junk > 0 else junk
    return str(junk)


def _is_long(word: str) -> bool:
    """A number so large that the command would only take long."""
    try:
        return float(word) > _LARGEST
    except ValueError:
        return False


def command_line(workplace: Workplace, rng: random.Random, folder: Path) -> Finding:
    """A working command line with one to three changes."""
    verb = rng.choice(_VERBS)
    words = _base(verb, workplace)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        word = _word(rng, workplace).replace("\x00", "")
        word = str(_LARGEST) if _is_long(word) else word
        draw = rng.random()
        if draw < 0.7:
            option, takes_value = rng.choice(_options(verb))
            if option == "--help":
                continue
            words += [option, *([word] if takes_value else [])]
        elif draw < 0.8:
            words[rng.randrange(1, len(words))] = word
        elif draw < 0.9:
            del words[rng.randrange(1, len(words))]
        else:
            words.append(word if rng.random() < 0.5 else f"--{word.lstrip('-')[:20]}")
    return _finding(words, folder)


def configured(workplace: Workplace, rng: random.Random, folder: Path) -> Finding:
    """A working command line with a configuration file of odd YAML."""
    verb = rng.choice(_VERBS)
    path = folder / "odd.yaml"
    names = ("seed", "device", "model", "out", "batch_size", "d_sae", "sae", "dataset", "no_such_setting")
    lines = [f"{rng.choice(names)}: {yaml_text(rng)}" for _ in range(rng.randint(1, 2))]
    path.write_text("\n".join(lines), errors="surrogatepass")
    words = _base(verb, workplace)
    if "--config" in words:  # keep its small sizes, or the run would be long
        path.write_text(workplace.config(verb).read_text() + "\n".join(lines), errors="surrogatepass")
    finding = _finding([*words, "--config", str(path)], folder)
    return Finding(finding.outcome, f"{verb} --config with {shorten(lines, 120)}", finding.detail)


def _finding(words: list[str], folder: Path) -> Finding:
    ended = Child(partial(run_command, tuple(words)), folder).wait(_SECONDS)
    return Finding(*_arranged(of_command(ended), "mtsae " + " ".join(shorten(word, 60) for word in words)))


def _arranged(outcome: tuple[str, str], what: str) -> tuple[str, str, str]:
    return outcome[0], what, outcome[1]


def _prepare(workplace: Workplace) -> Any:
    return workplace.sae, workplace.edit, workplace.facts


def _family(name: str, trial: Any, method: str, count: int, quick: int) -> Family:
    promise = "Any command line works, prints its usage, or is refused in one line. Nothing hangs."
    return Family(
        name, promise, method, trial, count, quick, injects=False, prepare=_prepare, seconds=_SECONDS + 5, per_process=20
    )


FAMILIES = [
    _family(
        "input/command-line", command_line, "a working command line of eight verbs with one to three odd changes", 1500, 12
    ),
    _family("input/config", configured, "the same verbs with a configuration file of odd YAML", 700, 6),
]
