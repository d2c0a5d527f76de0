"""Documents: the unit of every split.

A source is `embedded` (all domains), the name of one embedded domain, `biographies` (of the invented people, many of each; with
`biographies:forget`, `biographies:retain` and `biographies:strangers` those of some, grouped as in `mtsae_lens.data.facts`), a file or folder
of .txt, .jsonl or .parquet, a dataset on the Hugging Face hub (with `source@field=value` keeping the rows whose metadata say so, such as
`monology/pile-uncopyrighted@pile_set_name=Github`), or several of these joined by `+`. Each document belongs to one split for ever: the
embedded texts record it, all others take it from their place in the source, so it needs no state and no second pass.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Literal, TypeVar, get_args

import pyarrow.parquet as pq

from mtsae_lens.assets import TEXTS_FILE
from mtsae_lens.data.people import GROUPS, Person, make_biography, make_people, people_of
from mtsae_lens.data.text_files import SUFFIXES, read_texts
from mtsae_lens.errors import DataError, nearest

Split = Literal["train", "select", "tune", "test"]
SPLITS: tuple[str, ...] = get_args(Split)
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
    """Raise `DataError`, before any work is done, where a source can be none of the kinds."""
    for part in source_parts(source):
        next(_read(part), None)


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
    for document in _read(source):
        found = True
        if split is None or document.split == split:
            yield document
    if not found:
        raise DataError(f"{source}: no text in it; needed at least one non-empty document")


def _read(source: str) -> Iterator[Document]:
    if source == EMBEDDED:
        return _read_embedded(None)
    if source.strip() and is_local(source):
        return _in_order(source, read_texts(Path(source)))
    if source in embedded_domains():
        return _read_embedded(source)
    if source in _BIOGRAPHIES:
        return _read_biographies(_BIOGRAPHIES[source]())
    if len(joined := source_parts(source)) > 1:
        return chain.from_iterable(map(_read, joined))
    parts = Path(source).parts
    if len(parts) > 1 and parts[0] not in (".", "..", "/") and Path(parts[0]).is_dir():
        raise DataError(f"no file or folder {source!r}, though {parts[0]!r} is a folder here")
    if (
        "/" in source
        and not source.startswith((".", "/", "~"))
        and Path(source.split("@", maxsplit=1)[0]).suffix not in SUFFIXES
    ):
        return _in_order(source, _read_hub(source))
    raise DataError(
        f"no file, folder or embedded domain {source!r}.{nearest(source, [EMBEDDED, *_BIOGRAPHIES, *embedded_domains()])}"
    )


def source_parts(source: str) -> list[str]:
    """The sources that are joined by `+` in one; a file may have a `+` in its name."""
    parts = source.split("+")
    return [source] if is_local(source) or not all(parts) else parts


def is_local(source: str) -> bool:
    """Whether a source is a file or folder here."""
    try:
        return Path(source).exists()
    except OSError:  # a name too long for a file, or with a zero byte
        return False


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


def _read_hub(source: str) -> Iterator[str]:
    from datasets import load_dataset  # noqa: PLC0415 - slow to import, and local sources do without

    name, _, condition = source.partition("@")
    field, _, value = condition.partition("=")
    try:
        rows = load_dataset(name, split="train", streaming=True)
        for row in rows:
            if not isinstance(row.get("text"), str):
                raise DataError(f"dataset {name!r} has no text under 'text'; its columns: {', '.join(row)}")
            if not condition or row.get(field, (row.get("meta") or {}).get(field)) == value:
                yield row["text"]
    except DataError:
        raise
    except (OSError, ConnectionError, ValueError, RuntimeError) as error:
        raise DataError(
            f"dataset {name!r} cannot be read from the Hugging Face hub ({type(error).__name__}: {re.sub(chr(10), ' ', str(error))[:200]}); "
            "where the hub cannot be reached, give a local .txt, .jsonl or .parquet file, or 'embedded'"
        ) from error


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
