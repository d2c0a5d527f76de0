"""Read a folder of facts: `explore.json`, `features.parquet`, `examples.parquet` and `texts.parquet`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mtsae_lens.checksums import check_checksums
from mtsae_lens.errors import DataError
from mtsae_lens.facts.columns import parquet_schema, required_columns
from mtsae_lens.facts.records import Example, FeatureFacts, TextFacts
from mtsae_lens.sealed import read_json

FORMAT = "mtsae-exploration-1"
ABOUT_FILE, FEATURES_FILE, EXAMPLES_FILE, TEXTS_FILE = "explore.json", "features.parquet", "examples.parquet", "texts.parquet"
TABLES: dict[str, type[Any]] = {FEATURES_FILE: FeatureFacts, EXAMPLES_FILE: Example, TEXTS_FILE: TextFacts}
N_STRONGEST = 8
"""Features kept for each token of a text, also in folders whose `explore.json` does not record the number."""

_REMEDY = "delete its folder and run `mtsae explore` again"
_ROWS_AT_ONCE = 2048

Row = dict[str, Any]
"""A row of a table: values by column, lists as lists."""


@dataclass(frozen=True)
class FactsFolder:
    """The facts that `mtsae explore` wrote about the features of an SAE, as tables that can be read in pieces.

    Args:
        path: the folder.
        about: the content of `explore.json`.
    """

    path: Path
    about: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> FactsFolder:
        """Open a folder, and check that it is complete and undamaged.

        Args:
            path: the `--out` folder of a finished `mtsae explore`.

        Returns:
            The folder, with the content of `explore.json`.

        Raises:
            DataError: a file or a column is missing, a file is damaged, or the facts are of another format.
        """
        for name in (ABOUT_FILE, *TABLES):
            if not (path / name).is_file():
                raise DataError(
                    f"{path}: expected a folder of facts, got no {name}; give the --out folder of a finished `mtsae explore`"
                )
        about = read_json(path / ABOUT_FILE, dict[str, Any], _REMEDY)
        if about.get("format") != FORMAT:
            raise DataError(f"{path}: expected facts of format {FORMAT!r}, got {about.get('format')!r}; {_REMEDY}")
        check_checksums(path, _REMEDY)
        folder = cls(path, about)
        for name, record in TABLES.items():
            missing = sorted(set(required_columns(record)) - set(folder._file(name).schema_arrow.names))
            if missing:
                raise DataError(
                    f"{path / name}: expected the columns {', '.join(missing)}, got a table without them; {_REMEDY}"
                )
        return folder

    @property
    def n_features(self) -> int:
        """Return the number of features."""
        return int(self._file(FEATURES_FILE).metadata.num_rows)

    def features(self) -> Iterator[Row]:
        """Yield a row for each feature, in order, without reading the table at once; the columns are those of `FeatureFacts`."""
        return self._rows(FEATURES_FILE)

    def examples(self) -> Iterator[Row]:
        """Yield a row for each example, feature by feature, without reading the table at once; the columns are those of `Example`."""
        return self._rows(EXAMPLES_FILE)

    def texts(self) -> Iterator[Row]:
        """Yield a row for each context of the text view; the columns are those of `TextFacts`."""
        return self._rows(TEXTS_FILE)

    def feature_table(self) -> pa.Table:
        """Read the table of all features."""
        return self._read(FEATURES_FILE)

    def example_table(self, first: int, last: int) -> pa.Table:
        """Read the examples of some features, in the order of the table.

        Args:
            first: number of the first feature.
            last: number of the last feature, included.
        """
        return self._read(EXAMPLES_FILE, [("feature", ">=", first), ("feature", "<=", last)])

    def _rows(self, name: str) -> Iterator[Row]:
        file, every = self._file(name), dict.fromkeys(parquet_schema(TABLES[name]).names)
        present = [column for column in every if column in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=present):
            for row in batch.to_pylist():
                yield every | row

    def _read(self, name: str, filters: list[tuple[str, str, Any]] | None = None) -> pa.Table:
        schema, present = parquet_schema(TABLES[name]), set(self._file(name).schema_arrow.names)
        try:
            table = pq.read_table(
                self.path / name, columns=[column for column in schema.names if column in present], filters=filters
            )
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self.path / name}: expected a Parquet file, got {error} (damaged); {_REMEDY}") from error
        for field in schema:
            if field.name not in present:
                table = table.append_column(field, pa.nulls(len(table), field.type))
        return table.select(schema.names)

    def _file(self, name: str) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.path / name)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self.path / name}: expected a Parquet file, got {error} (damaged); {_REMEDY}") from error
