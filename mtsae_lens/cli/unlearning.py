"""Verbs of unlearning: find an edit, compare ways to unlearn, use an edit, carry it away."""

from __future__ import annotations

from typing import Annotated

import typer

from mtsae_lens.cli.options import (
    BatchSize,
    Config,
    Device,
    Edit,
    HookName,
    Model,
    Near,
    Out,
    Retain,
    SAEFolder,
    Seed,
    one_text,
    typed,
)
from mtsae_lens.cli.output import print_tables, say
from mtsae_lens.commands.export import MODEL_FOLDER, ExportSettings, comparison_table, run_export
from mtsae_lens.commands.generate import GenerateSettings, run_generate
from mtsae_lens.commands.unlearn import UnlearnSettings, run_unlearn
from mtsae_lens.commands.unlearn_report import effects_table
from mtsae_lens.experiments.benchmark.run import BenchmarkSettings, run_benchmark


def unlearn(
    sae: SAEFolder,
    forget: Annotated[list[str] | None, typer.Option(help="Text to forget: an embedded domain or a path.")] = None,
    retain: Retain = None,
    near: Near = None,
    reference: Annotated[
        str | None, typer.Option(help="A model that never saw the forget text, such as embedded-retrained.")
    ] = None,
    model: Model = None,
    far_budget: Annotated[float | None, typer.Option(help="Nats per token that far text may lose on TUNE.")] = None,
    near_budget: Annotated[float | None, typer.Option(help="Nats per token that near text may lose on TUNE.")] = None,
    min_ratio: Annotated[float | None, typer.Option(help="How much more often a feature must fire on the forget text.")] = None,
    batch_size: BatchSize = None,
    out: Out = None,
    config: Config = None,
    seed: Seed = None,
    device: Device = None,
) -> None:
    """Remove a topic by editing features, and measure it beside random features."""
    settings = UnlearnSettings.build(config, typed(locals(), forget=one_text("--forget", forget)))
    measured = run_unlearn(settings)
    print_tables(effects_table(measured))
    say(f"report: {settings.out / 'report.html'}")


def unlearn_benchmark(
    model: Model = None,
    hook_name: HookName = None,
    dataset: Annotated[list[str] | None, typer.Option(help="Text that the SAEs are trained on.")] = None,
    tasks: Annotated[
        list[str] | None, typer.Option("--task", help="domain or people, on the embedded model; may be repeated.")
    ] = None,
    forget: Annotated[list[str] | None, typer.Option(help="A task of your own: what to forget.")] = None,
    near: Near = None,
    retain: Retain = None,
    reference: Annotated[str | None, typer.Option(help="A model that never saw what is to be forgotten.")] = None,
    context_size: Annotated[int | None, typer.Option(help="Positions in a context.")] = None,
    n_seeds: Annotated[int | None, typer.Option(help="Seeds of every SAE and every method.")] = None,
    quick: Annotated[bool | None, typer.Option("--quick", help="One seed, short trainings, few settings.")] = None,
    n_workers: Annotated[int | None, typer.Option(help="Processes.")] = None,
    out: Out = None,
    config: Config = None,
    device: Device = None,
) -> None:
    """Compare every way to unlearn at matched cost: SAEs, a dense direction, finetuning, retraining. What is done is kept."""
    settings = BenchmarkSettings.build(
        config, typed(locals(), dataset=one_text("--dataset", dataset), forget=one_text("--forget", forget))
    )
    _, tables = run_benchmark(settings)
    print_tables(*tables)
    say(f"report: {settings.out / 'report.html'}")


def generate(
    sae: SAEFolder,
    edit: Edit = None,
    prompt: Annotated[str | None, typer.Option(help="Text to continue.")] = None,
    model: Model = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Tokens to add.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 takes the likeliest token.")] = None,
    config: Config = None,
    seed: Seed = None,
    device: Device = None,
) -> None:
    """Continue a prompt without and with an edit in place."""
    clean, edited = run_generate(GenerateSettings.build(config, typed(locals())))
    say(f"without the edit:\n{clean}\n\nwith the edit:\n{edited}")


def export(
    sae: SAEFolder,
    edit: Edit = None,
    form: Annotated[str | None, typer.Option(help="hooked, projected or low-rank.")] = None,
    forget: Annotated[
        list[str] | None, typer.Option(help="The text that the edit is for: measured, and trained on for low-rank.")
    ] = None,
    retain: Retain = None,
    near: Near = None,
    model: Model = None,
    rank: Annotated[int | None, typer.Option(help="Of a low-rank change.")] = None,
    n_steps: Annotated[int | None, typer.Option(help="Steps of its training.")] = None,
    batch_size: BatchSize = None,
    out: Out = None,
    config: Config = None,
    seed: Seed = None,
    device: Device = None,
) -> None:
    """Write an edited model as a Hugging Face folder: with the edit attached, or with something like it in the weights."""
    settings = ExportSettings.build(config, typed(locals(), forget=one_text("--forget", forget)))
    measured = run_export(settings)
    if measured["comparison"]:
        print_tables(comparison_table(measured))
    loader = "load_edited of its edited_model.py" if settings.form == "hooked" else "AutoModelForCausalLM.from_pretrained"
    say(f"model: {settings.out / MODEL_FOLDER}, opened by {loader}\n{measured['caveat']}")
    say(f"report: {settings.out / 'report.html'}")
