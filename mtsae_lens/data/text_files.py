"""Texts in files: .txt, which is cut into documents, .jsonl and .parquet with the text under `text`."""

from __future__ import annotations

import codecs
import json
import shlex
import textwrap
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mtsae_lens.errors import DataError

SUFFIXES = (".txt", ".jsonl", ".parquet")
DOCUMENT_CHARS = 3_000  # about 800 tokens: several contexts a document, and enough documents for a split by document
_PARQUET_ROWS = 1_024  # read at once, so that memory does not grow with the file


def read_texts(path: Path) -> Iterator[str]:
    """The texts of a file, or of all the files of a folder, few in memory at once.

    Raises:
        DataError: what cannot be read, by file and line.
    """
    if path.is_dir():
        files = files_in(path)
        if not files:
            raise DataError(f"{path}: no {', '.join(SUFFIXES)} file in this folder")
        for file in files:
            yield from read_texts(file)
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


def files_in(path: Path) -> list[Path]:
    """The file itself, or the files of a folder that are read, in order."""
    if not path.is_dir():
        return [path]
    # a folder may be called texts.txt, and its files would be read twice, in two splits
    return sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())


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
