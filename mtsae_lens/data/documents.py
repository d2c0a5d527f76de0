"""Documents: the unit of every split.

A source is `embedded` (all domains), the name of one embedded domain, `biographies` (of the invented people, many of each; with
`biographies:forget`, `biographies:retain` and `biographies:strangers` those of some, grouped as in
`mtsae_lens.data.questions`), a file or folder
of .txt, .jsonl or .parquet, a dataset on the Hugging Face hub, or several of these joined by `+`. `source?column=content` names the column of
the text, `owner/name?config=...&split=...` what of a dataset is read, and `source@field=value` keeps the rows with this value, such as
`monology/pile-uncopyrighted@pile_set_name=Github` (`mtsae_lens.data.sources`). Each document belongs to one split for ever: the embedded texts
record it, all others take it from their place in the source, so it needs no state and no second pass.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq

from mtsae_lens.assets import TEXTS_FILE
from mtsae_lens.data.choices import SPLITS, Split
from mtsae_lens.data.folders import text_suffix
from mtsae_lens.data.hub_rows import read_hub_rows
from mtsae_lens.data.people import GROUPS, Person, make_biography, make_people, people_of
from mtsae_lens.data.rows import RowReader
from mtsae_lens.data.sources import SourcePart, local_path, parse_part, source_parts
from mtsae_lens.data.text_files import read_texts
from mtsae_lens.errors import DataError, nearest

EMBEDDED = "embedded"
BIOGRAPHIES = "biographies"
N_BIOGRAPHIES_EACH = 40  # as many as the embedded models were trained on, told in the same words

_BIOGRAPHIES = {BIOGRAPHIES: make_people} | {f"{BIOGRAPHIES}:{group}": partial(people_of, group) for group in GROUPS}
"""Whose biographies, by source."""

_HELD_OUT = {7: "select", 8: "tune", 9: "test"}  # by place in the source, modulo 10: three tenths are held out

T = TypeVar("T")


@dataclass(frozen=True)
class Document:
    """A text, where it came from, and the split it belongs to."""

    text: str
    name: str
    split: str


@cache
def embedded_domains() -> tuple[str, ...]:
    """Domains of the embedded texts."""
    return tuple(sorted(set(pq.read_table(TEXTS_FILE, columns=["domain"])["domain"].to_pylist())))


def check_source(source: str) -> None:
    """Raise before any work is done where a source cannot be read, or a part of it has no text.

    Raises:
        DataError: see `read_documents`.
    """
    for part in source_parts(source):
        if next(_read_part(part, tell=False), None) is None:
            raise _no_text(part)


def source_name(source: str | Path) -> str:
    """A source as the string that names it.

    Raises:
        DataError: texts in memory, which have no name that a record could tell.
    """
    if isinstance(source, str | Path):
        return str(source)
    raise DataError(
        f"a source is a name or a path; got a {type(source).__name__}. Texts in memory go into a file first, such as "
        "datasets.Dataset.from_dict({'text': texts}).to_json('my-texts.jsonl')"
    )


def read_documents(source: str | Path, split: Split | None = None) -> Iterator[Document]:
    """The documents of a source in their own order, of one split or of all.

    Raises:
        DataError: no such source or split, or a source that is empty, binary, not UTF-8, or without a text column.
    """
    source = source_name(source)
    if split not in (None, *SPLITS):
        raise DataError(f"a split is one of {', '.join(SPLITS)}, or None for all; got {split!r}")
    found = False
    for document in chain.from_iterable(map(_read_part, source_parts(source))):
        found = True
        if split is None or document.split == split:
            yield document
    if not found:
        raise _no_text(source)


def _no_text(source: str) -> DataError:
    return DataError(f"{source}: no text in it; needed at least one non-empty document")


def _read_part(text: str, *, tell: bool = True) -> Iterator[Document]:
    """Yield the documents of a source that is not joined, and say at the end what was skipped."""
    if text == EMBEDDED:
        yield from _read_embedded(None)
        return
    part = parse_part(text)
    if part.path is None and (part.name in embedded_domains() or part.name in (EMBEDDED, *_BIOGRAPHIES)):
        if not part.is_plain:
            raise DataError(
                f"{text}: {part.name!r} comes with the package and has neither columns nor fields; leave out the rest"
            )
        yield from _read_biographies(_BIOGRAPHIES[text]()) if text in _BIOGRAPHIES else _read_embedded(text)
        return
    if part.path is None:
        _check_hub_name(part)
    reader = RowReader(text, part.choice)
    texts = read_texts(part.path, reader) if part.path is not None else reader.texts(read_hub_rows(part))
    try:
        yield from _in_order(text, texts)
        reader.check_matched()
    finally:
        if tell:
            reader.tell()


def _check_hub_name(part: SourcePart) -> None:
    """Raise for a name that cannot be that of a dataset on the hub.

    Raises:
        DataError: neither a local text nor `owner/name`.
    """
    name = part.name
    parts = Path(name).parts
    folder = local_path(parts[0]) if len(parts) > 1 and parts[0] not in (".", "..", "/") else None
    if folder is not None and folder.is_dir():
        raise DataError(f"no file or folder {name!r}, though {parts[0]!r} is a folder here")
    if "/" not in name or name.startswith((".", "/", "~")) or text_suffix(Path(name)) is not None:
        raise DataError(
            f"no file, folder or embedded domain {name!r}.{nearest(name, [EMBEDDED, *_BIOGRAPHIES, *embedded_domains()])}"
        )


def check_rows(rows: Any) -> None:
    """Raise where rows given in place of a source cannot be read again, as every epoch does.

    Raises:
        DataError: an iterator, such as a generator, or what cannot be iterated over.
    """
    kind = type(rows).__name__
    try:
        once = iter(rows) is rows
    except TypeError as error:
        raise DataError(f"expected rows such as datasets.Dataset.from_list([{{'text': ...}}]), got a {kind}") from error
    if once:
        raise DataError(f"needs rows that can be read again, got a {kind}, which gives them once; pass list(rows) or a Dataset")


def read_rows(rows: Iterable[Any], name: str = "override_dataset") -> Iterator[Document]:
    """Yield rows with a `text` column as documents of TRAIN; null and empty ones are skipped and counted, as in a file.

    Args:
        rows: mappings, such as those of a `datasets.Dataset`.
        name: what errors call them.

    Raises:
        DataError: see `check_rows`; or a row without a text.
    """
    check_rows(rows)
    reader = RowReader(name)
    texts = reader.texts((f"{name}, row {number}", row) for number, row in enumerate(rows))
    for place, text in enumerate(texts):
        yield Document(text, str(place), "train")
    reader.tell()


def _read_embedded(domain: str | None) -> Iterator[Document]:
    condition = None if domain is None else [("domain", "=", domain)]
    for row in pq.read_table(TEXTS_FILE, filters=condition).to_pylist():
        yield Document(row["text"], f"{row['domain']}/{row['number']}", row["split"])


def _read_biographies(people: Sequence[Person]) -> Iterator[Document]:
    for rendition in range(N_BIOGRAPHIES_EACH):
        for person in people:
            text = make_biography(person, random.Random(f"{person.name} {rendition}"))
            yield Document(text, f"{BIOGRAPHIES}/{person.name}/{rendition}", _HELD_OUT.get(rendition % 10, "train"))


def _in_order(source: str, texts: Iterable[str]) -> Iterator[Document]:
    for place, text in enumerate(text for text in texts if text.strip()):
        yield Document(text, f"{source}#{place}", _HELD_OUT.get(place % 10, "train"))


def shuffle_stream(items: Iterable[T], seed: int | str, buffer_size: int = 10_000) -> Iterator[T]:
    """Items in an order that a buffer of bounded size can make random, the same for the same seed."""
    rng = random.Random(seed)
    iterator = iter(items)
    buffer = list(islice(iterator, buffer_size))
    for item in iterator:
        place = rng.randrange(len(buffer))
        yield buffer[place]
        buffer[place] = item
    rng.shuffle(buffer)
    yield from buffer
