"""The command line `mtsae`: one verb, one settings class, one call.

Exit codes: 0 success, 1 full output or out of memory, 2 user error, 130 and 143 stopped by a signal, 141 closed output pipe.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections import Counter
from typing import Any

from cyclopts import App, CycloptsError, Parameter, RepeatArgumentError, UnusedCliTokensError
from pydantic import ValidationError

from mtsae_lens import __version__
from mtsae_lens.cli.allocation import keep_freed_memory
from mtsae_lens.cli.options import settings_verb
from mtsae_lens.cli.output import (
    BROKEN_PIPE,
    OutputLost,
    StandardOutput,
    drop_standard_output,
    lossy_standard_error,
    say_aside,
    warnings_as_lines,
)
from mtsae_lens.cli.verbs import VERBS
from mtsae_lens.errors import ConfigError, MTSAEError, TrainingInterrupted
from mtsae_lens.settings import describe_problem

app = App(
    name="mtsae",
    help="Multi-Scale Temporal Sparse Autoencoders: train, evaluate, unlearn, explore.",
    help_format="plaintext",
    default_parameter=Parameter(allow_repeating=True),
    version=f"mtsae-lens {__version__}",
)
for number, run in enumerate(VERBS):
    app.command(settings_verb(run), name=run.__name__.replace("_", "-"), sort_key=number)
app.register_install_completion_command(help="Install completion of verbs and options for this shell.")

_OUT_OF_MEMORY = re.compile(r"not enough memory|out of memory|can't allocate memory", re.IGNORECASE)


def main() -> None:
    """Run the command line. User errors are printed as one line, and signals set the exit code."""
    keep_freed_memory()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    with lossy_standard_error():
        _exit_with_code()


def _exit_with_code() -> None:
    """Run, and exit with the code of what went wrong."""
    try:
        with warnings_as_lines():
            _run(sys.argv[1:])
    except MTSAEError as error:
        say_aside(f"error: {error}")
        sys.exit(2)
    except TrainingInterrupted as stop:
        say_aside(f"stopped: {stop}")
        sys.exit(128 + stop.signal_number)
    except KeyboardInterrupt:
        say_aside("stopped")
        sys.exit(130)
    except OutputLost as lost:
        say_aside(f"error: {lost}")
        drop_standard_output()
        sys.exit(BROKEN_PIPE if lost.is_pipe else 1)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        say_aside(f"error: not enough memory ({str(error)[:200]}); give a smaller batch, model or SAE")
        sys.exit(1)


def _run(words: list[str]) -> None:
    try:
        command, bound, _ = app.parse_args(words, console=StandardOutput(), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise ConfigError(_explain(error)) from error
    _warn_of_repeats(words, bound.arguments)
    command(**bound.arguments)


def _warn_of_repeats(words: list[str], given: dict[str, Any]) -> None:
    """Warn about an option that is given several times but takes one value; the last value is used."""
    counts = Counter(word.partition("=")[0] for word in words if word.startswith("--"))
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        on, off = counts[option], counts[option.replace("--", "--no-", 1)]
        contradicts = on and off if isinstance(value, bool) else on > 1
        if contradicts and not isinstance(value, list):
            say_aside(f"warning: {option} is given {on + off} times; the last value is used")


def _explain(error: CycloptsError) -> str:
    """Describe in one line what is wrong with a command line."""
    cause = error.__cause__ or error.__context__
    if isinstance(cause, ValidationError) and error.argument is not None:
        return f"{error.argument.name}: {describe_problem(cause.errors(include_url=False)[0])}"
    if isinstance(error, UnusedCliTokensError):
        return f"expected a known option, got {(error.unused_tokens or [''])[0]!r}; see --help"
    if isinstance(error, RepeatArgumentError):
        option = error.token.keyword
        return f"{option}: expected one text, got several; join the texts with '+', such as {option} FIRST+SECOND"
    return str(error)
