"""Write the README of an exported model: what it is, how to load it, what the edit does, and where the edit came from."""

from __future__ import annotations

import json
from typing import Any

from mtsae_lens.data.origins import display_name
from mtsae_lens.machine_paths import shorten_settings
from mtsae_lens.markdown import code_span, escape_markdown
from mtsae_lens.splice.edit_interface import Edit


def describe_edit(edit: Edit) -> str:
    """Describe an edit and its gate in one sentence.

    Args:
        edit: the edit.
    """
    what = edit.describe()
    return f"{what[0].upper()}{what[1:]}, {edit.gate.describe()}."


def model_card(
    title: str, base: str, hook_name: str, edit: Edit, sections: dict[str, str], provenance: dict[str, Any] | None = None
) -> str:
    """Write a README in Markdown.

    Args:
        title: title of the page.
        base: name of the model that was edited; only the last part of a path is shown.
        hook_name: hook of the edit.
        edit: the edit that was exported.
        sections: text by heading, which differs between the forms of export.
        provenance: where the edit came from, shown as JSON.

    Returns:
        The text of the README.
    """
    name = display_name(base).rstrip("/").split("/")[-1]
    parts = [
        "---\nlibrary_name: transformers\ntags: [unlearning, sparse-autoencoder]\n---",
        f"# {title}",
        f"Base model: {escape_markdown(name)}; its license applies here too. Hook: {code_span(hook_name)}. Edit: {describe_edit(edit)}",
        *(f"## {heading}\n\n{text}" for heading, text in sections.items()),
        "## How it was made\n\n```json\n" + json.dumps(shorten_settings(provenance or {}), indent=1) + "\n```",
    ]
    return "\n\n".join(parts) + "\n"
