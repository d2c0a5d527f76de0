"""Stream the rows of a dataset on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from mtsae_lens.data.sources import SourcePart
from mtsae_lens.errors import DataError, nearest

_DEFAULT_SPLIT = "train"


def read_hub_rows(part: SourcePart) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a dataset together with their place, which names the row in errors.

    Args:
        part: the dataset's name, configuration and split.

    Yields:
        Pairs of place (`owner/name, row 7`) and row.

    Raises:
        DataError: the hub has no such dataset, configuration or split, or it cannot be reached.
    """
    from datasets import load_dataset  # noqa: PLC0415 - slow to import, and local sources do without

    config = () if part.config is None else (part.config,)
    try:
        rows = load_dataset(part.name, *config, split=part.split or _DEFAULT_SPLIT, streaming=True)
        for number, row in enumerate(rows):
            yield f"{part.name}, row {number}", row
    except Exception as error:  # the hub's libraries raise errors of many unrelated classes
        raise DataError(_explain(part, error)) from error


def _explain(part: SourcePart, error: Exception) -> str:
    """Return the error message, with a source to give instead if the hub's own message lists the valid names."""
    said = " ".join(str(error).split())
    listed = re.search(r"\[([^\]]*)\]", said)
    names = re.findall(r"['\"]([^'\"]+)['\"]", listed[1]) if listed else []
    key = next((key for key in _WRONG if re.search(key, said, re.IGNORECASE)), None)
    if names and key is not None:
        given = part.split or _DEFAULT_SPLIT if key == "split" else part.config
        suggestion = nearest(given, names) if given is not None else ""
        shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        options = {"config": part.config, "split": part.split} | {key: names[0]}
        typed = "&".join(f"{name}={value}" for name, value in options.items() if value is not None)
        return (
            f"dataset {part.name!r}: {_WRONG[key](given)}; it has {shown}. Give one, such as '{part.name}?{typed}'.{suggestion}"
        )
    return (
        f"dataset {part.name!r} cannot be read from the Hugging Face hub ({type(error).__name__}: {said[:200]}); "
        "where the hub cannot be reached, give a local .txt, .jsonl or .parquet file, or 'embedded'"
    )


_WRONG = {
    "config": lambda given: "a configuration must be named" if given is None else f"no configuration {given!r}",
    "split": lambda given: f"no split {given!r}",
}
