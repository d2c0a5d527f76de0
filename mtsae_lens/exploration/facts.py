"""A folder of facts, opened: tables of all features, records of one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mtsae_lens.checksums import check_checksums
from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.exploration.schema import ABOUT_FILE, EXAMPLES_FILE, FEATURES_FILE, FORMAT
from mtsae_lens.sealed import read_json

_REMEDY = "delete its folder and make the facts again with 'mtsae explore'"


@dataclass(frozen=True)
class FeatureFacts:
    """What is known of one feature; None, or an empty tuple, where nothing is."""

    feature: int
    n_active: int
    density: float  # share of the counted tokens at which it fires
    mean_activation: float | None  # where it fires
    max_activation: float | None
    histogram: tuple[int, ...]  # firings between the `histogram_edges` of explore.json
    corpus_density: tuple[float, ...]
    selectivity: float | None  # log2 of the density in the first corpus over the highest in any other
    promoted_tokens: tuple[str, ...]
    promoted_logits: tuple[float, ...]
    suppressed_tokens: tuple[str, ...]
    suppressed_logits: tuple[float, ...]
    neighbours: tuple[int, ...]
    neighbour_cosines: tuple[float, ...]  # of the decoder directions
    cofiring: tuple[int, ...]
    cofiring_scores: tuple[float, ...]  # phi coefficients
    mean_run_length: float | None  # positions in a row
    persistence: tuple[float | None, ...]
    """P(fires at t + lag | fires at t), by the `persistence_lags` of explore.json; None where no firing has a position so much later."""
    scale_shares: tuple[float, ...]  # of what lifts it when it fires, by dilation
    main_dilation: float | None
    context_share: float | None
    kernel: tuple[float, ...]  # the same lift, by the `offsets` of explore.json
    ablation_next_nll: float | None  # nats, mean over its strongest examples
    ablation_rest_nll: float | None
    n_ablated: int
    attribution: float | None  # nats per token of the text, to first order
    top_token: str | None


@dataclass(frozen=True)
class Example:
    """One firing with the tokens around it."""

    feature: int
    kind: str  # "top" or "sampled"
    rank: int
    corpus: int
    document: str
    position: int  # in its context
    tokens: tuple[str, ...]
    activations: tuple[float, ...]  # of each token
    peak: int  # index into `tokens`
    bias: float | None
    hidden_pre: float
    scale_contributions: tuple[float, ...]  # at the peak; with `bias` they sum to `hidden_pre`; empty for a pointwise SAE
    offset_contributions: tuple[float, ...]  # the same sum
    token_scale_contributions: tuple[float, ...]  # tokens x dilations, row by row; NaN where the feature does not fire
    model_attribution: tuple[float, ...]  # of each token, through the language model; empty where not computed


class Exploration:
    """Facts about the features of an SAE.

    `Exploration.open(folder)` reads what `mtsae explore` wrote. `features` is a table with a row for each feature, `feature(885)` are the
    facts of one feature, and `examples(885)` are the texts on which it fires most.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder, self.about = folder, about

    def __repr__(self) -> str:
        return f"Exploration({self.folder}: {self.about['d_sae']:,} features on {self.about['n_tokens']:,} tokens)"

    @classmethod
    def open(cls, folder: Path | str) -> Exploration:
        """The facts in a folder.

        Raises:
            DataError: it holds none, or unfinished or damaged ones.
        """
        folder = Path(folder)
        for name in (ABOUT_FILE, FEATURES_FILE, EXAMPLES_FILE):
            if not (folder / name).is_file():
                raise DataError(f"{folder}: no {name}; needed the --out folder of a finished 'mtsae explore'")
        about = read_json(folder / ABOUT_FILE, dict[str, Any], _REMEDY)
        if about.get("format") != FORMAT:
            raise DataError(f"{folder}: facts of format {about.get('format')!r}; needed {FORMAT!r}: make them anew")
        check_checksums(folder, _REMEDY)
        return cls(folder, about)

    @cached_property
    def table(self) -> pa.Table:
        """`features.parquet`."""
        return _read(self.folder / FEATURES_FILE)

    @cached_property
    def features(self) -> pd.DataFrame:
        """One row per feature, with the columns of `FeatureFacts`; lists as arrays, null as NaN."""
        return self.table.to_pandas()

    def feature(self, feature: int) -> FeatureFacts:
        """What is known of one feature.

        Raises:
            ConfigError: the SAE has no such feature.
        """
        self._check(feature)
        return FeatureFacts(**_record(self.table.slice(feature, 1).to_pylist()[0]))

    def examples(self, feature: int, kind: str | None = None) -> list[Example]:
        """The strongest firings of a feature ("top"), then the sampled ones, each from the highest activation down.

        Args:
            feature: which.
            kind: "top" or "sampled"; None for both.

        Raises:
            ConfigError: the SAE has no such feature, or there is no such kind.
        """
        self._check(feature)
        if kind not in (None, "top", "sampled"):
            raise ConfigError(f"kind must be 'top' or 'sampled', or None for both; got {kind!r}")
        rows = example_records(_read(self.folder / EXAMPLES_FILE, [("feature", "=", feature)]))
        return [row for row in rows if kind in (None, row.kind)]

    def search(self, text: str) -> pd.DataFrame:
        """Features whose top token or promoted tokens contain a text, upper and lower case alike; top tokens first, then by density."""
        wanted = text.lower()
        top = pc.fill_null(pc.match_substring(self.table["top_token"], wanted, ignore_case=True), fill_value=False).to_numpy()
        promoted = [any(wanted in token.lower() for token in tokens) for tokens in self.table["promoted_tokens"].to_pylist()]
        found = self.features.assign(by_top_token=top)[top | promoted]
        return found.sort_values(["by_top_token", "density"], ascending=False).drop(columns="by_top_token")

    def _check(self, feature: int) -> None:
        if not 0 <= feature < self.about["d_sae"]:
            raise ConfigError(f"features must lie between 0 and {self.about['d_sae'] - 1}; got {feature}")


def example_records(rows: pa.Table) -> list[Example]:
    """Rows of `examples.parquet` as records."""
    return [Example(**_record(row)) for row in rows.to_pylist()]


def _record(row: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}


def _read(path: Path, filters: list[tuple[str, str, Any]] | None = None) -> pa.Table:
    try:
        return pq.read_table(path, filters=filters)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} is damaged ({error}); {_REMEDY}") from error
