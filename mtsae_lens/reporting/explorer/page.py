"""Write the explorer into a folder of facts: `index.html` and `page/`, which open from disk without a network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.resources import as_file, files
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from mtsae_lens.errors import DataError
from mtsae_lens.facts.folder import N_STRONGEST, FactsFolder
from mtsae_lens.files import write_text, write_whole_folder
from mtsae_lens.progress import track
from mtsae_lens.reporting.explorer.scripts import round_floats, write_shard_script
from mtsae_lens.reporting.explorer.shards import (
    FEATURES_PER_SHARD,
    TEXTS_PER_SHARD,
    make_column_shard,
    make_example_shard,
    make_feature_shard,
    make_list_shard,
    make_text_index,
    make_text_shard,
)

INDEX_FILE = "index.html"
PAGE_FOLDER = "page"


def write_explorer(facts_dir: Path) -> Path:
    """Write the page beside the facts. An earlier page is replaced atomically.

    Args:
        facts_dir: the `--out` folder of a finished `mtsae explore`.

    Returns:
        The page's `index.html`.

    Raises:
        DataError: the folder holds no facts, or facts that are incomplete or damaged.
        OutputError: the page cannot be written.
    """
    facts = FactsFolder.open(facts_dir)
    with as_file(files("mtsae_lens.reporting.explorer") / "static") as static:
        with write_whole_folder(facts_dir / PAGE_FOLDER) as page:
            shutil.copytree(static, page, dirs_exist_ok=True, ignore=shutil.ignore_patterns(INDEX_FILE))
            _write_data(facts, page / "data")
        write_text(facts_dir / INDEX_FILE, (static / INDEX_FILE).read_text(encoding="utf-8"))
    return facts_dir / INDEX_FILE


def _write_data(facts: FactsFolder, data: Path) -> None:
    data.mkdir()
    _write_shard(data, "columns", 0, make_column_shard())
    _write_shard(data, "list", 0, make_list_shard(facts.features()))
    _write_features(facts, data)
    index = _write_texts(facts, data)
    sizes = {"features_per_shard": FEATURES_PER_SHARD, "texts_per_shard": TEXTS_PER_SHARD, "n_strongest": N_STRONGEST}
    _write_shard(data, "explore", 0, sizes | round_floats(facts.about, 6) | {"texts": index})


def _write_features(facts: FactsFolder, data: Path) -> None:
    edges = facts.about.get("histogram_edges") or []
    n_shards = -(-facts.n_features // FEATURES_PER_SHARD)
    shards = zip(_pieces(facts.features(), FEATURES_PER_SHARD), _by_shard(facts, n_shards), strict=True)
    for number, (shard, examples) in enumerate(track(shards, "writing the page", "part", n_shards)):
        _write_shard(data, "features", number, make_feature_shard(shard))
        _write_shard(data, "examples", number, make_example_shard(shard, examples, edges))


def _by_shard(facts: FactsFolder, n_shards: int) -> Iterator[dict[int, list[dict[str, Any]]]]:
    """Yield the examples of each shard, by feature; a shard of features that never fired has none."""
    groups = groupby(facts.examples(), key=lambda row: row["feature"] // FEATURES_PER_SHARD)
    number, rows = next(groups, (n_shards, iter(())))
    for wanted in range(n_shards):
        if number == wanted:
            yield {feature: list(group) for feature, group in groupby(rows, key=lambda row: row["feature"])}
            number, rows = next(groups, (n_shards, iter(())))
        else:
            yield {}
    if number != n_shards:
        raise DataError(
            f"{facts.path}: expected examples.parquet sorted by feature, got another order; delete the folder and run `mtsae explore` again"
        )


def _write_texts(facts: FactsFolder, data: Path) -> list[dict[str, Any]]:
    index: list[dict[str, Any]] = []
    for number, texts in enumerate(_pieces(facts.texts(), TEXTS_PER_SHARD)):
        _write_shard(data, "texts", number, make_text_shard(texts))
        index += make_text_index(texts)
    return index


def _pieces(rows: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while piece := list(islice(rows, size)):
        yield piece


def _write_shard(data: Path, kind: str, number: int, content: Any) -> None:
    (data / f"{kind}-{number}.js").write_text(write_shard_script(kind, number, content), encoding="utf-8")
