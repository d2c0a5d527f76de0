"""Write the tables of columns in `docs/how-to/explore.md` from `mtsae_lens.facts.records`: `python -m tools.fact_tables`."""

from __future__ import annotations

import re
from pathlib import Path

from mtsae_lens.facts.columns import columns
from mtsae_lens.facts.folder import EXAMPLES_FILE, FEATURES_FILE, TEXTS_FILE
from mtsae_lens.facts.records import Example, FeatureFacts, TextFacts

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "explore.md"


def make_tables() -> dict[str, str]:
    """Return the Markdown table of each Parquet file, by the file's name."""
    features = ["| column | on the page | meaning | neutral value |", "|---|---|---|---|"]
    for name, column in columns(FeatureFacts).items():
        meaning = " ".join(filter(None, (column.meaning, column.detail)))
        features.append(f"| `{name}` | {column.title or ''} | {meaning} | {column.neutral} |")
    tables = {FEATURES_FILE: "\n".join(features)}
    for file, record in {EXAMPLES_FILE: Example, TEXTS_FILE: TextFacts}.items():
        rows = [f"| `{name}` | {column.meaning} |" for name, column in columns(record).items()]
        tables[file] = "\n".join(["| column | meaning |", "|---|---|", *rows])
    return tables


def fill_in(text: str) -> str:
    """Put the tables between the comments that mark their places.

    Args:
        text: a Markdown page with `<!-- columns of FILE -->` and `<!-- end of columns -->`.

    Returns:
        The page with the tables of today.
    """
    for file, table in make_tables().items():
        place = re.compile(rf"(<!-- columns of {re.escape(file)} -->\n).*?(<!-- end of columns -->)", re.DOTALL)
        text = place.sub(lambda found, table=table: f"{found[1]}\n{table}\n\n{found[2]}", text)  # type: ignore[misc]
    return text


if __name__ == "__main__":
    PAGE.write_text(fill_in(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
