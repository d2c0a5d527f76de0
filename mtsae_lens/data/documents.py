"""Documents: the unit of every split.

A source is `embedded` (all domains), the name of one embedded domain, `biographies` (of the invented people, many of each), a file or
folder of .txt, .jsonl or .parquet, a dataset on the Hugging Face hub (with `source@field=value` keeping the rows whose metadata say so, such
as `monology/pile-uncopyrighted@pile_set_name=Github`), or several of these joined by `+`. Each document belongs to one split for ever: the
embedded texts record it, all others take it from their place in the source, so it needs no state and no second pass.
"""

from __future__ import annotations

import codecs
import json
import random
import re
import shlex
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from mtsae_lens.assets import TEXTS_FILE
from mtsae_lens.data.people import make_biography, make_people
from mtsae_lens.errors import DataError, nearest

Split = Literal["train", "select", "tune", "test"]
SPLITS: tuple[str, ...] = get_args(Split)
SUFFIXES = (".txt", ".jsonl", ".parquet")
EMBEDDED = "embedded"
BIOGRAPHIES = "biographies"
N_BIOGRAPHIES_EACH = 40  # as many as the embedded models were trained on, told in the same words

DOCUMENT_CHARS = 3_000  # about 800 tokens: several contexts a document, and enough documents for a split by document
_HELD_OUT = {7: "select", 8: "tune", 9: "test"}  # by place in the source, modulo 10: three tenths are held out
_PARQUET_ROWS = 1_024  # read at once, so that memory does not grow with the file

T = TypeVar("T")


@dataclass(frozen=True)
class Document:
    """A text, where it came from, and the split it belongs to."""

    text: str
    name: str
    split: str


def cut_into_documents(text: str) -> Iterator[str]:
    """Whole lines up to about `DOCUMENT_CHARS`, ended at a blank line where one comes soon."""
    kept: list[str] = []
    length = 0
    for line in _lines(text):
        kept.append(line.rstrip())
        length += len(line) + 1
        if length >= DOCUMENT_CHARS and (not line.strip() or length >= 1.5 * DOCUMENT_CHARS):
            yield "\n".join(kept).strip("\n")
            kept, length = [], 0
    if any(kept):
        yield "\n".join(kept).strip("\n")


def _lines(text: str) -> Iterator[str]:
    """Lines; one that is longer than six documents is wrapped, or a text without line breaks would be a single document."""
    for line in text.split("\n"):
        if len(line) > 6 * DOCUMENT_CHARS:
            yield from textwrap.wrap(line, DOCUMENT_CHARS, break_on_hyphens=False)
        else:
            yield line


@cache
def embedded_domains() -> tuple[str, ...]:
    """Domains of the embedded texts."""
    return tuple(sorted(set(pq.read_table(TEXTS_FILE, columns=["domain"])["domain"].to_pylist())))


def check_source(source: str) -> None:
    """Raise `DataError`, before any work is done, where a source can be none of the kinds."""
    for part in _parts(source):
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
    if source.strip() and _exists(source):
        return _in_order(source, _read_path(Path(source)))
    if source in embedded_domains():
        return _read_embedded(source)
    if source == BIOGRAPHIES:
        return _read_biographies()
    if len(joined := _parts(source)) > 1:
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
        f"no file, folder or embedded domain {source!r}.{nearest(source, [EMBEDDED, BIOGRAPHIES, *embedded_domains()])}"
    )


def _parts(source: str) -> list[str]:
    """The sources that are joined by `+`; a file may have a `+` in its name."""
    parts = source.split("+")
    return [source] if _exists(source) or not all(parts) else parts


def _exists(source: str) -> bool:
    try:
        return Path(source).exists()
    except OSError:  # a name too long for a file, or with a zero byte
        return False


def _read_embedded(domain: str | None) -> Iterator[Document]:
    condition = None if domain is None else [("domain", "=", domain)]
    for row in pq.read_table(TEXTS_FILE, filters=condition).to_pylist():
        yield Document(row["text"], f"{row['domain']}/{row['number']}", row["split"])


def _read_biographies() -> Iterator[Document]:
    for rendition in range(N_BIOGRAPHIES_EACH):
        for person in make_people():
            text = make_biography(person, random.Random(f"{person.name} {rendition}"))
            yield Document(text, f"{BIOGRAPHIES}/{person.name}/{rendition}", _HELD_OUT.get(rendition % 10, "train"))


def _in_order(source: str, texts: Iterable[str]) -> Iterator[Document]:
    for place, text in enumerate(text for text in texts if text.strip()):
        yield Document(text, f"{source}#{place}", _HELD_OUT.get(place % 10, "train"))


def _read_path(path: Path) -> Iterator[str]:
    if path.is_dir():
        # a folder may be called texts.txt, and its files would be read twice, in two splits
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not files:
            raise DataError(f"{path}: no {', '.join(SUFFIXES)} file in this folder")
        for file in files:
            yield from _read_path(file)
        return
    try:
        suffix = path.suffix.lower()
        if suffix == ".txt":
            yield from cut_into_documents(_decode(path, path.read_bytes()))
        elif suffix == ".jsonl":
            yield from _read_jsonl(path)
        elif suffix == ".parquet":
            yield from _read_parquet(path)
        else:
            raise DataError(
                f"{path}: cannot read {path.suffix or 'a file without suffix'}; needed one of {', '.join(SUFFIXES)}"
            )
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error


def _decode(path: Path, data: bytes, line: int | None = None) -> str:
    """UTF-8, with a byte order mark or without; `line` is for the error."""
    place = f"{path}" if line is None else f"{path}:{line}"
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if b"\0" in data[:65_536] and not utf16:
        raise DataError(f"{place}: binary, not text (it has zero bytes)")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        command = ["iconv", "-f", "UTF-16" if utf16 else "LATIN1", "-t", "UTF-8", f"{path}"]
        converted = shlex.quote(f"{path.stem}-utf8{path.suffix}")
        raise DataError(
            f"{place}: not UTF-8 at byte {error.start}; convert it with: {shlex.join(command)} > {converted}"
        ) from error


def _read_jsonl(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = _decode(path, line, number)
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: not JSON ({error.msg})") from error
            yield _text_of(row, f"{path}:{number}")


def _text_of(row: Any, place: str) -> str:
    if not isinstance(row, dict):
        raise DataError(f"{place}: needed an object with a string under 'text'; got a {type(row).__name__}")
    if not isinstance(row.get("text"), str):
        kinds = ", ".join(f"{name!r}: {type(value).__name__}" for name, value in islice(row.items(), 8))
        raise DataError(f"{place}: needed an object with a string under 'text'; got {{{kinds}}}")
    try:
        row["text"].encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place}: character {error.start} is half of a surrogate pair, which no text can hold; take it out"
        ) from error
    return row["text"]


def _read_parquet(path: Path) -> Iterator[str]:
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a parquet file ({error})") from error
    if "text" not in file.schema_arrow.names:
        raise DataError(f"{path}: no column 'text'; it has {', '.join(file.schema_arrow.names)}")
    kind = file.schema_arrow.field("text").type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(f"{path}: column 'text' holds {kind}; needed strings")
    for batch in file.iter_batches(_PARQUET_ROWS, columns=["text"]):
        yield from (text for text in batch["text"].to_pylist() if text)


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
