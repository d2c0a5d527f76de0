"""The command line `mtsae`: one verb, one settings class, one call. Exit codes: 0 done, 1 the output
or the memory is full, 2 a mistake to put right, 130 and 143 stopped, 141 nothing reads the output."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from typing import Annotated

import typer

from mtsae_lens import __version__
from mtsae_lens.cli import experiments, saes, unlearning
from mtsae_lens.cli.once import OnceCommand
from mtsae_lens.cli.output import BROKEN_PIPE, OutputLost, drop_standard_output, say_aside, warnings_as_lines
from mtsae_lens.errors import MTSAEError, TrainingInterrupted

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for verb in (
    saes.train,
    saes.evaluate,
    unlearning.unlearn,
    unlearning.unlearn_benchmark,
    unlearning.generate,
    unlearning.export,
    saes.explore,
    saes.upload,
    saes.export_neuronpedia,
    experiments.demo,
    experiments.planted,
    experiments.paper,
):
    app.command(cls=OnceCommand)(verb)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mtsae-lens {__version__}")
        raise typer.Exit


@app.callback()
def mtsae(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Multi-Scale Temporal Sparse Autoencoders: train, evaluate, unlearn, explore."""


_OUT_OF_MEMORY = re.compile(r"not enough memory|out of memory|can't allocate memory", re.IGNORECASE)


def main() -> None:
    """Entry point: turns errors that the user can put right into one line, and signals into their exit codes."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        with warnings_as_lines():
            app()
    except MTSAEError as error:
        say_aside(f"error: {error}")
        sys.exit(2)
    except TrainingInterrupted as stop:
        say_aside(f"stopped: {stop}")
        sys.exit(128 + stop.signal_number)
    except OutputLost as lost:
        say_aside(f"error: {lost}")
        drop_standard_output()
        sys.exit(BROKEN_PIPE if lost.is_pipe else 1)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        say_aside(f"error: not enough memory ({str(error)[:200]}); give a smaller batch, model or SAE")
        sys.exit(1)
