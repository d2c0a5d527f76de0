"""The command line `mtsae`: one verb, one settings class, one call. Exit codes: 0 done, 2 a mistake to put right, 130 and 143 stopped."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table as RichTable

from mtsae_lens.errors import ConfigError, MTSAEError, TrainingInterrupted

app = typer.Typer(
    help="Multi-Scale Temporal Sparse Autoencoders: train, evaluate, unlearn, explore.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Config = Annotated[Path | None, typer.Option(help="YAML file of settings; what is typed goes before it.")]
Out = Annotated[Path | None, typer.Option(help="Folder for results.")]
Seed = Annotated[int | None, typer.Option(help="Random seed.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")]
Model = Annotated[str | None, typer.Option(help="embedded, a TransformerLens name, or a local Hugging Face folder.")]


@app.command()
def train(
    model: Model = None,
    hook_name: Annotated[str | None, typer.Option(help="TransformerLens hook, such as blocks.3.hook_resid_post.")] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="embedded, an embedded domain, a hub name, or a .txt, .jsonl, .parquet or folder.")
    ] = None,
    architecture: Annotated[str | None, typer.Option(help="mtsae, or any that SAELens trains: topk, standard, ...")] = None,
    d_sae: Annotated[int | None, typer.Option(help="Features.")] = None,
    training_tokens: Annotated[int | None, typer.Option(help="Tokens to train on.")] = None,
    context_size: Annotated[int | None, typer.Option(help="Positions in a context.")] = None,
    batch_size_tokens: Annotated[int | None, typer.Option(help="Tokens in a batch; a multiple of the context size.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the language model: float32, bfloat16 or float16.")] = None,
    prepend_bos: Annotated[bool | None, typer.Option(help="Begin every context with BOS.")] = None,
    wandb: Annotated[bool | None, typer.Option(help="Log to Weights & Biases too.")] = None,
    wandb_project: Annotated[str | None, typer.Option(help="Log to this project of Weights & Biases.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Setting of the architecture, such as --set k=16; may be repeated.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    out: Out = None,
    config: Config = None,
    seed: Seed = None,
    device: Device = None,
) -> None:
    """Train an SAE."""
    from mtsae_lens.commands.settings import parse_assignments  # noqa: PLC0415 - a verb imports what it needs
    from mtsae_lens.commands.train import TrainSettings, run_train  # noqa: PLC0415

    typed = {
        "model": model,
        "hook_name": hook_name,
        "dataset": _one_text("--dataset", dataset),
        "architecture": architecture,
        "d_sae": d_sae,
        "training_tokens": training_tokens,
        "context_size": context_size,
        "batch_size_tokens": batch_size_tokens,
        "lr": lr,
        "dtype": dtype,
        "prepend_bos": prepend_bos,
        "wandb": True if wandb is None and wandb_project else wandb,
        "wandb_project": wandb_project,
        "sae": parse_assignments(set_) if set_ else None,
        "out": out,
        "seed": seed,
        "device": device,
    }
    settings = TrainSettings.build(config, typed)
    if resume and not (settings.out / "checkpoints").is_dir():
        typer.echo(f"no checkpoint in {settings.out}: starting anew", err=True)
    metrics = run_train(settings, resume=resume)
    final = metrics["final"]
    typer.echo(
        f"trained {metrics['n_training_steps']:,} steps: on training batches explained variance "
        f"{final.get('metrics/explained_variance', float('nan')):.3f}, L0 {final.get('metrics/l0', float('nan')):.1f}; saved in {settings.out}"
    )


@app.command()
def evaluate(
    sae: Annotated[Path, typer.Argument(help="Folder of a trained SAE.")],
    dataset: Annotated[
        list[str] | None, typer.Option(help="Held-out text; the training dataset's own test split if not given.")
    ] = None,
    model: Model = None,
    n_contexts: Annotated[int | None, typer.Option(help="Contexts to measure on, at most.")] = None,
    out: Out = None,
    config: Config = None,
    seed: Seed = None,
    device: Device = None,
) -> None:
    """Measure an SAE on held-out text with SAELens's run_evals."""
    from mtsae_lens.commands.evaluate import EvaluateSettings, metrics_table, run_evaluate  # noqa: PLC0415

    typed = {
        "sae": sae,
        "dataset": _one_text("--dataset", dataset),
        "model": model,
        "n_contexts": n_contexts,
        "seed": seed,
        "device": device,
    }
    settings = EvaluateSettings.build(config, typed | {"out": out or (None if config else Path("runs/evaluate"))})
    measured = run_evaluate(settings)
    _print_table(metrics_table({"value": measured}))
    typer.echo(f"report: {settings.out / 'report.html'}")


@app.command()
def unlearn(
    sae: Annotated[Path, typer.Argument(help="Folder of a trained SAE.")],
    forget: Annotated[list[str] | None, typer.Option(help="Text to forget: an embedded domain or a path.")] = None,
    retain: Annotated[list[str] | None, typer.Option(help="Text to keep, far from the forget text; may be repeated.")] = None,
    near: Annotated[list[str] | None, typer.Option(help="Text to keep, near to it; may be repeated.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="A model that never saw the forget text, such as embedded-retrained.")
    ] = None,
    model: Model = None,
    far_budget: Annotated[float | None, typer.Option(help="Nats per token that far text may lose on TUNE.")] = None,
    near_budget: Annotated[float | None, typer.Option(help="Nats per token that near text may lose on TUNE.")] = None,
    min_ratio: Annotated[float | None, typer.Option(help="How much more often a feature must fire on the forget text.")] = None,
    out: Out = None,
    config: Config = None,
    seed: Seed = None,
    device: Device = None,
) -> None:
    """Remove a topic by editing features, and measure it beside random features."""
    from mtsae_lens.commands.unlearn import UnlearnSettings, run_unlearn  # noqa: PLC0415
    from mtsae_lens.commands.unlearn_page import effects_table  # noqa: PLC0415

    typed: dict[str, Any] = {
        "sae": sae,
        "forget": _one_text("--forget", forget),
        "retain": tuple(retain) if retain else None,
        "near": tuple(near) if near else None,
        "reference": reference,
        "model": model,
        "far_budget": far_budget,
        "near_budget": near_budget,
        "min_ratio": min_ratio,
        "out": out or (None if config else Path("runs/unlearn")),
        "seed": seed,
        "device": device,
    }
    settings = UnlearnSettings.build(config, typed)
    measured = run_unlearn(settings)
    _print_table(effects_table(measured))
    typer.echo(f"report: {settings.out / 'report.html'}")


@app.command("unlearn-benchmark")
def unlearn_benchmark(
    model: Model = None,
    hook_name: Annotated[str | None, typer.Option(help="TransformerLens hook, such as blocks.3.hook_resid_post.")] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="Text that the SAEs are trained on.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="domain or people, on the embedded model; may be repeated.")] = None,
    forget: Annotated[list[str] | None, typer.Option(help="A task of your own: what to forget.")] = None,
    near: Annotated[list[str] | None, typer.Option(help="Its text to keep, near; may be repeated.")] = None,
    retain: Annotated[list[str] | None, typer.Option(help="Its text to keep, far; may be repeated.")] = None,
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
    from mtsae_lens.commands.benchmark import BenchmarkSettings, run_benchmark  # noqa: PLC0415

    typed: dict[str, Any] = {
        "model": model,
        "hook_name": hook_name,
        "dataset": _one_text("--dataset", dataset),
        "tasks": tuple(task) if task else None,
        "forget": _one_text("--forget", forget),
        "near": tuple(near) if near else None,
        "retain": tuple(retain) if retain else None,
        "reference": reference,
        "context_size": context_size,
        "n_seeds": n_seeds,
        "quick": quick,
        "n_workers": n_workers,
        "out": out,
        "device": device,
    }
    settings = BenchmarkSettings.build(config, typed)
    _, tables = run_benchmark(settings)
    for table in tables:
        _print_table(table)
    typer.echo(f"report: {settings.out / 'report.html'}")


@app.command()
def generate(
    sae: Annotated[Path, typer.Argument(help="Folder of a trained SAE.")],
    edit: Annotated[Path | None, typer.Option(help="An edit that 'mtsae unlearn' wrote (edit.json).")] = None,
    prompt: Annotated[str | None, typer.Option(help="Text to continue.")] = None,
    model: Model = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Tokens to add.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 takes the likeliest token.")] = None,
    config: Config = None,
    seed: Seed = None,
    device: Device = None,
) -> None:
    """Continue a prompt without and with an edit in place."""
    from mtsae_lens.commands.generate import GenerateSettings, run_generate  # noqa: PLC0415

    typed = {
        "sae": sae,
        "edit": edit,
        "prompt": prompt,
        "model": model,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "seed": seed,
        "device": device,
    }
    clean, edited = run_generate(GenerateSettings.build(config, typed))
    typer.echo(f"without the edit:\n{clean}\n\nwith the edit:\n{edited}")


@app.command()
def export(
    sae: Annotated[Path, typer.Argument(help="Folder of a trained SAE.")],
    edit: Annotated[Path | None, typer.Option(help="An edit that 'mtsae unlearn' wrote (edit.json).")] = None,
    form: Annotated[str | None, typer.Option(help="hooked, projected or low-rank.")] = None,
    forget: Annotated[
        list[str] | None, typer.Option(help="The text that the edit is for: measured, and trained on for low-rank.")
    ] = None,
    retain: Annotated[list[str] | None, typer.Option(help="Text to keep, far from it; may be repeated.")] = None,
    near: Annotated[list[str] | None, typer.Option(help="Text to keep, near to it; may be repeated.")] = None,
    model: Model = None,
    rank: Annotated[int | None, typer.Option(help="Of a low-rank change.")] = None,
    n_steps: Annotated[int | None, typer.Option(help="Steps of its training.")] = None,
    out: Out = None,
    config: Config = None,
    seed: Seed = None,
    device: Device = None,
) -> None:
    """Write an edited model as a Hugging Face folder: with the edit attached, or with something like it in the weights."""
    from mtsae_lens.commands.export import MODEL_FOLDER, ExportSettings, comparison_table, run_export  # noqa: PLC0415

    typed: dict[str, Any] = {
        "sae": sae,
        "edit": edit,
        "form": form,
        "forget": _one_text("--forget", forget),
        "retain": tuple(retain) if retain else None,
        "near": tuple(near) if near else None,
        "model": model,
        "rank": rank,
        "n_steps": n_steps,
        "out": out or (None if config else Path("runs/export")),
        "seed": seed,
        "device": device,
    }
    settings = ExportSettings.build(config, typed)
    measured = run_export(settings)
    if measured["comparison"]:
        _print_table(comparison_table(measured))
    loader = "load_edited of its edited_model.py" if settings.form == "hooked" else "AutoModelForCausalLM.from_pretrained"
    typer.echo(f"model: {settings.out / MODEL_FOLDER}, opened by {loader}")


@app.command()
def explore(
    sae: Annotated[Path, typer.Argument(help="Folder of a trained SAE, of any architecture.")],
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            help="Text to look through; may be repeated, the first is compared with the others. The training dataset if not given."
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="train, select, tune or test.")] = None,
    n_tokens: Annotated[int | None, typer.Option(help="Tokens to look through.")] = None,
    n_examples: Annotated[int | None, typer.Option(help="Strongest examples of each feature.")] = None,
    n_ablated: Annotated[int | None, typer.Option(help="Of those, how many are ablated; 0 leaves that out.")] = None,
    n_attributed: Annotated[
        int | None, typer.Option(help="And how many attributed through the model; 0 leaves that out.")
    ] = None,
    model: Model = None,
    out: Out = None,
    config: Config = None,
    seed: Seed = None,
    device: Device = None,
) -> None:
    """Find out what every feature does: examples, time scales, effects. What is done is kept, and goes on when typed again."""
    from mtsae_lens.commands.explore import ExploreSettings, run_explore  # noqa: PLC0415

    typed: dict[str, Any] = {
        "sae": sae,
        "dataset": tuple(dataset) if dataset else None,
        "split": split,
        "n_tokens": n_tokens,
        "n_examples": n_examples,
        "n_ablated": n_ablated,
        "n_attributed": n_attributed,
        "model": model,
        "out": out,
        "seed": seed,
        "device": device,
    }
    settings = ExploreSettings.build(config, typed)
    facts, page = run_explore(settings)
    fewer = facts["n_tokens"] < 0.9 * facts["n_tokens_asked"]  # special tokens are asked for and not counted
    asked = f" (all there were; {facts['n_tokens_asked']:,} were asked for)" if fewer else ""
    typer.echo(f"looked at {facts['n_tokens']:,} tokens{asked}")
    typer.echo(f"page: {page}")


@app.command()
def upload(
    sae: Annotated[Path, typer.Argument(help="Folder of a trained SAE.")],
    repo_id: Annotated[str, typer.Argument(help="OWNER/NAME on the Hugging Face hub; created if there is none.")],
    sae_id: Annotated[str | None, typer.Option(help="Folder of the SAE in the repository; its hook, if not given.")] = None,
    metrics: Annotated[Path | None, typer.Option(help="metrics.json of 'mtsae evaluate', for the card.")] = None,
    private: Annotated[bool | None, typer.Option("--private", help="Create the repository as a private one.")] = None,
    dry_run: Annotated[Path | None, typer.Option(help="Write the files into this new folder instead of sending them.")] = None,
    config: Config = None,
) -> None:
    """Put an SAE on the Hugging Face hub, in SAELens's layout, with a card."""
    from mtsae_lens.commands.upload import UploadSettings, run_upload  # noqa: PLC0415

    typed = {"sae": sae, "repo_id": repo_id, "sae_id": sae_id, "metrics": metrics, "private": private, "dry_run": dry_run}
    place = run_upload(UploadSettings.build(config, typed))
    typer.echo(f"{'written, not sent' if dry_run else 'uploaded'}: {place}")


@app.command("export-neuronpedia")
def export_neuronpedia(
    facts: Annotated[Path, typer.Argument(help="The --out folder of 'mtsae explore'.")],
    out: Out = None,
    model_id: Annotated[str | None, typer.Option(help="Neuronpedia's name of the model.")] = None,
    sae_set: Annotated[str | None, typer.Option(help="Neuronpedia's name of the set of SAEs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Features in a file.")] = None,
    config: Config = None,
) -> None:
    """Write what 'mtsae explore' found in the JSON that Neuronpedia imports."""
    from mtsae_lens.commands.neuronpedia import NeuronpediaSettings, run_export_neuronpedia  # noqa: PLC0415

    typed = {"facts": facts, "out": out, "model_id": model_id, "sae_set": sae_set, "batch_size": batch_size}
    settings = NeuronpediaSettings.build(config, typed)
    n_batches = run_export_neuronpedia(settings)
    typer.echo(f"{n_batches} batches in {settings.out}")


@app.command()
def demo(
    out: Out = None,
    training_tokens: Annotated[int | None, typer.Option(help="Tokens to train on.")] = None,
    config: Config = None,
    seed: Seed = None,
) -> None:
    """Train, evaluate and unlearn on the embedded model, and write a report."""
    from mtsae_lens.commands.demo import DemoSettings, run_demo  # noqa: PLC0415

    settings = DemoSettings.build(config, {"out": out, "training_tokens": training_tokens, "seed": seed})
    _, tables = run_demo(settings)
    for table in tables:
        _print_table(table)
    typer.echo(f"report: {settings.out / 'report.html'}")


@app.command()
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
    from mtsae_lens.commands.planted import PlantedCommandSettings, run_planted  # noqa: PLC0415

    typed = {
        "n_seeds": n_seeds,
        "n_direction_seeds": n_direction_seeds,
        "n_steps": n_steps,
        "d_sae": d_sae,
        "n_workers": n_workers,
        "out": out,
    }
    settings = PlantedCommandSettings.build(config, typed)
    _, tables = run_planted(settings)
    for table in tables:
        _print_table(table)
    typer.echo(f"report: {settings.out / 'report.html'}")


@app.command()
def paper(
    model: Model = None,
    hook_name: Annotated[str | None, typer.Option(help="TransformerLens hook, such as blocks.3.hook_resid_post.")] = None,
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
    from mtsae_lens.commands.paper import PaperSettings, run_paper  # noqa: PLC0415

    typed = {
        "model": model,
        "hook_name": hook_name,
        "dataset": _one_text("--dataset", dataset),
        "n_seeds": n_seeds,
        "quick": quick,
        "out": out,
        "device": device,
    }
    settings = PaperSettings.build(config, typed)
    _, tables = run_paper(settings)
    for table in tables:
        _print_table(table)
    typer.echo(f"report: {settings.out / 'report.html'}")


def _one_text(option: str, sources: list[str] | None) -> str | None:
    """What was typed; the last of several would leave the others out, and nobody would know."""
    if sources and len(sources) > 1:
        joined = shlex.quote("+".join(sources))
        raise ConfigError(f"{option} takes one text and was given {len(sources)} times; join them: {option} {joined}")
    return sources[0] if sources else None


def _print_table(table: Any) -> None:
    rich_table = RichTable(show_edge=False, pad_edge=False)
    for name in table.header:
        rich_table.add_column(name, justify="left" if name in (table.header[0], "meaning") else "right")
    for row in table.rows:
        rich_table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else "-" if cell is None else str(cell) for cell in row))
    width = None if sys.stdout.isatty() else 220
    Console(width=width).print(rich_table)


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


if __name__ == "__main__":
    main()
