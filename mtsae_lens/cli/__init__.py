"""The command line `mtsae`: one verb, one settings class, one call. Exit codes: 0 done, 2 a mistake to put right, 130 and 143 stopped."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Annotated

import typer

from mtsae_lens import __version__
from mtsae_lens.cli import experiments, saes, unlearning
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
    app.command()(verb)


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


def main() -> None:
    """Entry point: turns errors that the user can put right into one line, and signals into their exit codes."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        app()
    except MTSAEError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except TrainingInterrupted as stop:
        typer.echo(f"stopped: {stop}", err=True)
        sys.exit(128 + stop.signal_number)
