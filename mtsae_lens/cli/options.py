"""What verbs share: options, and what was typed, by the names of the settings."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from mtsae_lens.errors import ConfigError

# Paths are passed on as text: an empty one would become the working directory, and the settings know what may be empty
SAEFolder = Annotated[str, typer.Argument(help="Folder of a trained SAE, of any architecture.", metavar="SAE")]
Config = Annotated[str | None, typer.Option(metavar="FILE", help="YAML file of settings; what is typed goes before it.")]
Out = Annotated[str | None, typer.Option(metavar="PATH", help="Folder for results.")]
Seed = Annotated[int | None, typer.Option(help="Random seed.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")]
Model = Annotated[str | None, typer.Option(help="embedded, a TransformerLens name, or a local Hugging Face folder.")]
HookName = Annotated[str | None, typer.Option(help="TransformerLens hook, such as blocks.3.hook_resid_post.")]
BatchSize = Annotated[
    int | None, typer.Option(help="Contexts in a forward pass, at most; a large vocabulary or SAE takes fewer.")
]
Edit = Annotated[str | None, typer.Option(metavar="FILE", help="An edit that 'mtsae unlearn' wrote (edit.json).")]
Retain = Annotated[list[str] | None, typer.Option(help="Text to keep, far from the forget text; may be repeated.")]
Near = Annotated[list[str] | None, typer.Option(help="Text to keep, near to it; may be repeated.")]


def typed(arguments: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """What a verb was given, by the settings' names: its `locals()`, before there are others; None is what was not typed.

    `changes` are what differs from the argument: None for one that is no setting.
    """
    return {name: value for name, value in arguments.items() if name != "config"} | changes


def one_text(option: str, sources: list[str] | None) -> str | None:
    """What was typed; the last of several would leave the others out, and nobody would know."""
    if sources and len(sources) > 1:
        joined = shlex.quote("+".join(sources))
        raise ConfigError(f"{option} takes one text and was given {len(sources)} times; join them: {option} {joined}")
    return sources[0] if sources else None
