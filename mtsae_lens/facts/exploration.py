"""Inspect facts in Python: a table of all features, and records of single features and examples."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from mtsae_lens.errors import ConfigError
from mtsae_lens.facts.folder import FactsFolder, Row
from mtsae_lens.facts.records import Example, FeatureFacts

if TYPE_CHECKING:
    import pandas as pd


class Exploration:
    """Facts about the features of an SAE.

    `Exploration.open(folder)` reads what `mtsae explore` wrote. `features` is a table with a row for each feature, `feature(885)`
    returns the facts of one feature, and `examples(885)` returns the texts on which it fires most.
    """

    def __init__(self, files: FactsFolder) -> None:
        self._files = files

    def __repr__(self) -> str:
        return f"Exploration({self.folder}: {self.about['d_sae']:,} features on {self.about['n_tokens']:,} tokens)"

    @classmethod
    def open(cls, folder: Path | str) -> Exploration:
        """Open a folder of facts.

        Args:
            folder: the `--out` folder of a finished `mtsae explore`.

        Returns:
            The facts; tables are read when they are first used.

        Raises:
            DataError: the folder holds no facts, or facts that are unfinished, damaged or of another format.
        """
        return cls(FactsFolder.open(Path(folder)))

    @property
    def folder(self) -> Path:
        """Return the folder of the facts."""
        return self._files.path

    @property
    def about(self) -> dict[str, Any]:
        """Return the content of `explore.json`: what was explored, and how."""
        return self._files.about

    @cached_property
    def table(self) -> pa.Table:
        """Return `features.parquet` as an Arrow table."""
        return self._files.feature_table()

    @cached_property
    def features(self) -> pd.DataFrame:
        """Return one row per feature, with the columns of `FeatureFacts`; lists are arrays, and missing numbers are NaN."""
        return self.table.to_pandas()

    def feature(self, feature: int) -> FeatureFacts:
        """Return what is known about one feature.

        Args:
            feature: number of the feature.

        Raises:
            ConfigError: the SAE has no such feature.
        """
        self._check(feature)
        return FeatureFacts(**_with_tuples(self.table.slice(feature, 1).to_pylist()[0]))

    def examples(self, feature: int, kind: str | None = None) -> list[Example]:
        """Return the strongest firings of a feature ("top"), then the sampled ones, each from the highest activation down.

        Args:
            feature: number of the feature.
            kind: "top" or "sampled"; None for both.

        Raises:
            ConfigError: the SAE does not have the feature, or the kind does not exist.
        """
        self._check(feature)
        if kind not in (None, "top", "sampled"):
            raise ConfigError(f"expected kind 'top', 'sampled' or None, got {kind!r}; give None for both kinds")
        return [row for row in make_examples(self._files.example_table(feature, feature)) if kind in (None, row.kind)]

    def search(self, text: str) -> pd.DataFrame:
        """Find features whose top token or promoted tokens contain a text.

        Args:
            text: the text to find; upper and lower case do not matter.

        Returns:
            Rows of `features`: those with the text in the top token first, then by falling density.
        """
        wanted = text.lower()
        top = pc.fill_null(pc.match_substring(self.table["top_token"], wanted, ignore_case=True), fill_value=False).to_numpy()
        promoted = [any(wanted in token.lower() for token in tokens) for tokens in self.table["promoted_tokens"].to_pylist()]
        found = self.features.assign(by_top_token=top)[top | promoted]
        return found.sort_values(["by_top_token", "density"], ascending=False).drop(columns="by_top_token")

    def _check(self, feature: int) -> None:
        if not 0 <= feature < self.about["d_sae"]:
            raise ConfigError(
                f"expected a feature between 0 and {self.about['d_sae'] - 1}, got {feature}; give one of these numbers"
            )


def make_examples(rows: pa.Table) -> list[Example]:
    """Turn rows of `examples.parquet` into records.

    Args:
        rows: a table with the columns of `Example`.

    Returns:
        The records, in the order of the rows.
    """
    return [Example(**_with_tuples(row)) for row in rows.to_pylist()]


def _with_tuples(row: Row) -> Row:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
