"""The folder of facts as the page reads it: `explore.json`, `features.parquet`, `examples.parquet`, `texts.parquet`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mtsae_lens.checksums import check_checksums
from mtsae_lens.errors import DataError
from mtsae_lens.sealed import read_json

FORMAT = "mtsae-exploration-1"
SETTINGS_FILE = "explore.json"

_COLUMNS = {
    "features.parquet": (
        "feature n_active density mean_activation max_activation histogram corpus_density selectivity "
        "promoted_tokens promoted_logits suppressed_tokens suppressed_logits neighbours neighbour_cosines cofiring cofiring_scores "
        "mean_run_length persistence scale_shares main_dilation context_share kernel "
        "ablation_next_nll ablation_rest_nll n_ablated attribution top_token"
    ).split(),
    "examples.parquet": (
        "feature kind rank corpus document position tokens activations peak bias hidden_pre "
        "scale_contributions offset_contributions token_scale_contributions model_attribution"
    ).split(),
    "texts.parquet": "corpus document tokens features activations nll".split(),
}
_ROWS_AT_ONCE = 2048


@dataclass(frozen=True)
class FactsFolder:
    """What `mtsae explore` found out about an SAE: its settings, and tables that are read in pieces."""

    path: Path
    settings: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> FactsFolder:
        """Read the settings and check that every table is there, with every column.

        Raises:
            DataError: not such a folder, another format, or a table or column is missing.
        """
        if not (path / SETTINGS_FILE).is_file():
            raise DataError(f"{path}: no {SETTINGS_FILE}; write the facts with `mtsae explore SAE_DIR --out {path}`")
        remedy = f"delete {path / SETTINGS_FILE} and run `mtsae explore` again"
        settings = read_json(path / SETTINGS_FILE, dict[str, Any], remedy)
        came = settings.get("format")
        if came != FORMAT:
            raise DataError(f"{path / SETTINGS_FILE}: format {came!r}, but {FORMAT!r} is needed; {remedy}")
        check_checksums(path, remedy)
        folder = cls(path, settings)
        for name, needed in _COLUMNS.items():
            missing = sorted(set(needed) - set(folder._table(name).schema_arrow.names))
            if missing:
                raise DataError(f"{path / name}: no column {', '.join(missing)}; {remedy}")
        return folder

    @property
    def n_features(self) -> int:
        """Number of features."""
        return int(self._table("features.parquet").metadata.num_rows)

    def features(self) -> Iterator[dict[str, Any]]:
        """One record per feature, in order; few are in memory at once."""
        return self._rows("features.parquet")

    def examples(self) -> Iterator[dict[str, Any]]:
        """One record per example, by feature; few are in memory at once."""
        return self._rows("examples.parquet")

    def texts(self) -> Iterator[dict[str, Any]]:
        """One record per context of the text view."""
        return self._rows("texts.parquet")

    def _rows(self, name: str) -> Iterator[dict[str, Any]]:
        for batch in self._table(name).iter_batches(batch_size=_ROWS_AT_ONCE, columns=_COLUMNS[name]):
            yield from batch.to_pylist()

    def _table(self, name: str) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.path / name)
        except (OSError, pa.ArrowException) as error:
            remedy = f"delete {self.path / SETTINGS_FILE} and run `mtsae explore` again"
            raise DataError(f"{self.path / name}: cannot be read ({error}); {remedy}") from error
