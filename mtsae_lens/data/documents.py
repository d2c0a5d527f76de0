"""Read documents. Every split into train, SELECT, TUNE and TEST is made by document.

A source is one of:

- `embedded` (all embedded domains), or the name of one embedded domain;
- `biographies` (several of each invented person), or `biographies:forget`, `biographies:retain` or `biographies:strangers` (the biographies
  of one group, see `mtsae_lens.data.questions`), or `biographies:forget/16` (of the first 16 people of the group);
- a file or folder of .txt, .jsonl or .parquet;
- a dataset on the Hugging Face hub;
- several of these, joined by `+`.

`source?column=content` names the column of the text, `owner/name?config=...&split=...` chooses a part of a hub dataset, and
`source@field=value` keeps the rows with this value, such as `monology/pile-uncopyrighted@pile_set_name=Github`
(`mtsae_lens.data.sources`). A document always belongs to the same split. The embedded texts record it; for all other text it follows from
the document's index in the source, so no state and no second pass is needed.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq

from mtsae_lens.assets import TEXTS_FILE
from mtsae_lens.data.choices import SPLITS, Split
from mtsae_lens.data.folders import text_suffix
from mtsae_lens.data.hub_rows import read_hub_rows
from mtsae_lens.data.people import GROUPS, Person, is_group, make_biography, make_people, people_of
from mtsae_lens.data.rows import RowReader
from mtsae_lens.data.sources import SourcePart, local_path, parse_part, source_parts
from mtsae_lens.data.text_files import read_texts
from mtsae_lens.errors import DataError, nearest

EMBEDDED = "embedded"
BIOGRAPHIES = "biographies"
N_BIOGRAPHIES_EACH = 40  # biographies per person, as in the training text of the embedded models, with the same wording

_BIOGRAPHIES = (BIOGRAPHIES, *(f"{BIOGRAPHIES}:{group}" for group in GROUPS))

_HELD_OUT = {7: "select", 8: "tune", 9: "test"}  # by index in the source, modulo 10: three tenths are held out

T = TypeVar("T")


@dataclass(frozen=True)
class Document:
    """A text, the place it came from, and the split it belongs to."""

    text: str
    name: str
    split: str


@cache
def embedded_domains() -> tuple[str, ...]:
    """Return the names of the embedded domains, sorted."""
    return tuple(sorted(set(pq.read_table(TEXTS_FILE, columns=["domain"])["domain"].to_pylist())))


def check_source(source: str) -> None:
    """Check that every part of a source can be read and has text, before any work is done.

    Args:
        source: the source, as `read_documents` takes it.

    Raises:
        DataError: see `read_documents`.
    """
    for part in source_parts(source):
        if next(_read_part(part, tell=False), None) is None:
            raise _no_text(part)


def source_name(source: str | Path) -> str:
    """Return a source as a string.

    Args:
        source: a name or a path.

    Raises:
        DataError: `source` is neither a string nor a path, such as a list of texts.
    """
    if isinstance(source, str | Path):
        return str(source)
    raise DataError(
        f"expected the name or path of a source, got a {type(source).__name__}; write texts in memory to a file first, such as "
        "datasets.Dataset.from_dict({'text': texts}).to_json('my-texts.jsonl')"
    )


def read_documents(source: str | Path, split: Split | None = None) -> Iterator[Document]:
    """Yield the documents of a source in their order.

    Args:
        source: the text, see the module docstring.
        split: the split to read; None reads all of them.

    Yields:
        Documents with their text, name and split.

    Raises:
        DataError: the source or the split does not exist, or the source is empty, binary, not UTF-8, or without a text column.
    """
    source = source_name(source)
    if split not in (None, *SPLITS):
        raise DataError(f"expected a split out of {', '.join(SPLITS)}, or None for all, got {split!r}; give one of them")
    found = False
    for document in chain.from_iterable(map(_read_part, source_parts(source))):
        found = True
        if split is None or document.split == split:
            yield document
    if not found:
        raise _no_text(source)


def _no_text(source: str) -> DataError:
    return DataError(f"{source}: expected at least one non-empty document, got none; give a source with text")


def _read_part(text: str, *, tell: bool = True) -> Iterator[Document]:
    """Yield the documents of a source that is not joined, and report at the end what was skipped."""
    if text == EMBEDDED:
        yield from _read_embedded(None)
        return
    part = parse_part(text)
    if part.path is None and (part.name in (EMBEDDED, *embedded_domains()) or _has_biographies(part.name)):
        if not part.is_plain:
            raise DataError(
                f"{text}: expected {part.name!r} alone, because text of the package has no columns or fields, "
                f"got {text!r}; give {part.name}"
            )
        yield from _read_biographies(_people_in(text)) if _has_biographies(text) else _read_embedded(text)
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
    """Check that a name can be that of a dataset on the hub.

    Raises:
        DataError: the name is neither a local path nor of the form `owner/name`.
    """
    name = part.name
    parts = Path(name).parts
    folder = local_path(parts[0]) if len(parts) > 1 and parts[0] not in (".", "..", "/") else None
    if folder is not None and folder.is_dir():
        raise DataError(
            f"expected an existing file or folder, got {name!r}, which is not in the folder {parts[0]!r}; check the path"
        )
    if "/" not in name or name.startswith((".", "/", "~", f"{BIOGRAPHIES}:")) or text_suffix(Path(name)) is not None:
        raise DataError(
            f"expected a file, a folder, an embedded domain or owner/name on the hub, got {name!r}."
            f"{nearest(name, [EMBEDDED, *_BIOGRAPHIES, *embedded_domains()])}"
        )


def check_rows(rows: Any) -> None:
    """Check that rows given in place of a source can be iterated over more than once, as every epoch does.

    Args:
        rows: the object to check.

    Raises:
        DataError: `rows` is an iterator, such as a generator, or cannot be iterated over.
    """
    kind = type(rows).__name__
    try:
        once = iter(rows) is rows
    except TypeError as error:
        raise DataError(f"expected rows such as datasets.Dataset.from_list([{{'text': ...}}]), got a {kind}") from error
    if once:
        raise DataError(f"expected rows that can be read more than once, got a {kind}; pass list(rows) or a Dataset")


def read_rows(rows: Iterable[Any], name: str = "override_dataset") -> Iterator[Document]:
    """Yield rows with a `text` column as documents of the train split. Rows whose text is null or empty are skipped and counted.

    Args:
        rows: mappings, such as those of a `datasets.Dataset`.
        name: name of the rows in errors.

    Raises:
        DataError: see `check_rows`; or a row has no text column.
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


def _has_biographies(name: str) -> bool:
    kind, colon, group = name.partition(":")
    return kind == BIOGRAPHIES and (is_group(group) or not colon)


def _people_in(source: str) -> tuple[Person, ...]:
    """Return the people whose biographies a source holds."""
    _, _, group = source.partition(":")
    return people_of(group) if group else make_people()


def _read_biographies(people: Sequence[Person]) -> Iterator[Document]:
    for rendition in range(N_BIOGRAPHIES_EACH):
        for person in people:
            text = make_biography(person, random.Random(f"{person.name} {rendition}"))
            yield Document(text, f"{BIOGRAPHIES}/{person.name}/{rendition}", _HELD_OUT.get(rendition % 10, "train"))


def _in_order(source: str, texts: Iterable[str]) -> Iterator[Document]:
    for place, text in enumerate(text for text in texts if text.strip()):
        yield Document(text, f"{source}#{place}", _HELD_OUT.get(place % 10, "train"))


def shuffle_stream(items: Iterable[T], seed: int | str, buffer_size: int = 10_000) -> Iterator[T]:
    """Yield items in a random order, within a buffer of bounded size.

    Args:
        items: the items, which may be too many for memory.
        seed: seed of the order; the same seed gives the same order.
        buffer_size: items held at once. The order is fully random if there are no more items than that.
    """
    rng = random.Random(seed)
    iterator = iter(items)
    buffer = list(islice(iterator, buffer_size))
    for item in iterator:
        place = rng.randrange(len(buffer))
        yield buffer[place]
        buffer[place] = item
    rng.shuffle(buffer)
    yield from buffer
