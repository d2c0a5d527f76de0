"""Verbs that need nothing given: the demo, planted time scales, the paper."""

from __future__ import annotations

from typing import Annotated

import typer

from mtsae_lens.cli.options import Config, Device, HookName, Model, Out, Seed, one_text, typed
from mtsae_lens.cli.output import print_tables, say
from mtsae_lens.experiments.demo import DemoSettings, run_demo
from mtsae_lens.experiments.paper.run import PaperSettings, run_paper
from mtsae_lens.experiments.planted.run import PlantedCommandSettings, run_planted


def demo(
    out: Out = None,
    training_tokens: Annotated[int | None, typer.Option(help="Tokens to train on.")] = None,
    config: Config = None,
    seed: Seed = None,
) -> None:
    """Train, evaluate and unlearn on the embedded model, and write a report."""
    settings = DemoSettings.build(config, typed(locals()))
    _, tables = run_demo(settings)
    print_tables(*tables)
    say(f"report: {settings.out / 'report.html'}")


def planted(
    n_seeds: Annotated[int | None, typer.Option(help="Dictionaries to compare the architectures on.")] = None,
    n_direction_seeds: Annotated[int | None, typer.Option(help="Dictionaries for the ablations; 0 leaves them out.")] = None,
    n_steps: Annotated[int | None, typer.Option(help="Training steps of every SAE.")] = None,
    d_sae: Annotated[int | None, typer.Option(help="Features of every SAE.")] = None,
    n_workers: Annotated[int | None, typer.Option(help="Processes.")] = None,
    out: Out = None,
    config: Config = None,
) -> None:
    """Recover planted features of known time scales, with MTSAE and with SAELens's SAEs. What is done is kept."""
    settings = PlantedCommandSettings.build(config, typed(locals()))
    _, tables = run_planted(settings)
    print_tables(*tables)
    say(f"report: {settings.out / 'report.html'}")


def paper(
    model: Model = None,
    hook_name: HookName = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="Text; the Pile for pythia-70m and the embedded texts otherwise, if not given.")
    ] = None,
    n_seeds: Annotated[int | None, typer.Option(help="Seeds of every experiment.")] = None,
    quick: Annotated[bool | None, typer.Option("--quick", help="Two seeds and fewer steps: to see that it runs.")] = None,
    out: Out = None,
    config: Config = None,
    device: Device = None,
) -> None:
    """Repeat the paper that MTSAEs come from, and show by experiment why its model did not learn."""
    settings = PaperSettings.build(config, typed(locals(), dataset=one_text("--dataset", dataset)))
    _, tables = run_paper(settings)
    print_tables(*tables)
    say(f"report: {settings.out / 'report.html'}")
