"""Read texts from files: .txt (cut into documents), and .jsonl and .parquet with the text in a column; .txt and .jsonl also compressed."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import os
import re
import shlex
import stat
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

from mtsae_lens.data.folders import SUFFIXES, files_in, list_suffixes, scan_folder, text_suffix
from mtsae_lens.data.parquet_rows import read_parquet_rows
from mtsae_lens.data.rows import RowReader
from mtsae_lens.data.text_cutting import cut_into_documents
from mtsae_lens.errors import DataError

_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\0": "xz", b"PK\3\4": "zip", b"PAR1": "parquet"}
_COMPRESSIONS = ("gzip", "zstd", "xz", "bz2")
_BZ2 = re.compile(rb"BZh[1-9]1AY&SY")
_OLD_LINE_END = re.compile(rb"(?<=\})\r(?=\{)")  # anywhere else between JSON tokens, a carriage return is white space
_DAMAGED = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, pa.ArrowException)


def read_texts(path: Path, reader: RowReader | None = None) -> Iterator[str]:
    """Yield the texts of a file, or of all files of a folder, with few of them in memory at a time.

    Args:
        path: the file or folder.
        reader: chooses rows and column; by default all rows and the column `text`.

    Raises:
        DataError: a file cannot be read; the message names the file and the line.
    """
    reader = reader or RowReader(str(path))
    files = files_in(path)
    if not files:
        skipped = scan_folder(path).describe_skipped()
        raise DataError(
            f"{path}: expected a folder with {', '.join(SUFFIXES)} files, got none{f' (not read: {skipped})' if skipped else ''}; "
            "give the folder that holds the texts"
        )
    for file in files:
        yield from _read_file(file, reader)


def _read_file(path: Path, reader: RowReader) -> Iterator[str]:
    suffix = text_suffix(path)
    if suffix is None:
        raise DataError(
            f"{path}: expected a file that ends with one of {list_suffixes()}, got {path.suffix or 'a file without suffix'}; convert it"
        )
    try:
        with _open(path, suffix) as file:
            if suffix == ".parquet":
                yield from reader.texts(read_parquet_rows(path, file, reader.choice))
            elif suffix == ".jsonl":
                yield from reader.texts(_read_jsonl(path, file, reader.choice.column))
            elif not reader.choice.is_default:
                raise DataError(
                    f"{path}: expected no ?column= or @field= for a .txt file, which has no columns, got one; leave it out"
                )
            else:
                text = _unify_line_ends(_decode(path, file.read()))
        if suffix == ".txt":
            yield from cut_into_documents(text)
    except _DAMAGED as error:
        raise DataError(
            f"{path}: expected a whole file, got a damaged or truncated one ({type(error).__name__}: {_one_line(error)}); make it again"
        ) from error
    except OSError as error:
        raise DataError(
            f"{path}: expected a readable file, got the error {error.strerror or _one_line(error)}; check its path and permissions"
        ) from error


@contextmanager
def _open(path: Path, suffix: str) -> Iterator[BinaryIO]:
    """Open a file, decompressed if its first bytes say that it is compressed.

    Raises:
        DataError: the file is not a regular file, does not have the format that its name says, or changed while it was read.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataError(
            f"{path}: expected a regular file, got a pipe, socket, device or folder; copy the text into a file and give that"
        )
    with path.open("rb") as file:
        kind = _kind(file.peek(16))
        if kind in ((*_COMPRESSIONS, "zip") if suffix == ".parquet" else ("zip", "parquet")):
            raise DataError(f"{path}: expected {suffix} contents, got {_describe(kind)}")
        before = os.fstat(file.fileno())
        yield _decompressed(file, kind)
        after = os.fstat(file.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise DataError(
                f"{path}: expected a file that does not change, got a change while it was read; run this again when nothing writes to it"
            )


def _kind(head: bytes) -> str | None:
    """Return the format of a file by its first bytes; None for text or an unknown format."""
    if _BZ2.match(head):
        return "bz2"
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


def _describe(kind: str | None) -> str:
    if kind == "parquet":
        return "a parquet file; give it a name that ends with .parquet"
    return "a zip archive; unpack it" if kind == "zip" else f"a compressed file ({kind}); unpack it"


def _decompressed(file: BinaryIO, kind: str | None) -> BinaryIO:
    if kind == "gzip":
        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    if kind == "bz2":
        return cast(BinaryIO, bz2.BZ2File(file))
    if kind == "xz":
        return cast(BinaryIO, lzma.LZMAFile(file))
    if kind == "zstd":
        return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd"), 1 << 20)
    return file


def _unify_line_ends(text: str) -> str:
    """End the lines of an old Macintosh file with line feeds; those of Windows lose their `\\r` when the text is cut."""
    return re.sub(r"\r(?!\n)", "\n", text)


def _decode(path: Path, data: bytes, line: int | None = None) -> str:
    """Decode UTF-8, with or without a byte order mark; `line` is for the error."""
    place = f"{path}" if line is None else f"{path}:{line}"
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if b"\0" in data and not utf16:
        raise DataError(f"{place}: expected text, got binary data (byte {data.index(0)} is zero); give a text file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        command = ["iconv", "-f", "UTF-16" if utf16 else "LATIN1", "-t", "UTF-8", f"{path}"]
        converted = shlex.quote(f"{path.stem}-utf8{path.suffix}")
        raise DataError(
            f"{place}: expected UTF-8, got something else at byte {error.start}; convert it with: {shlex.join(command)} > {converted}"
        ) from error


def _read_jsonl(path: Path, file: BinaryIO, column: str) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a file together with their place."""
    key = json.dumps(column, ensure_ascii=False).encode()
    number = 0
    for ended in file:
        for line in _OLD_LINE_END.split(ended):
            number += 1
            if line.strip():
                yield f"{path}:{number}", _parse_json(path, number, line, repeated=line.count(key) > 1)


def _parse_json(path: Path, number: int, line: bytes, *, repeated: bool) -> Any:
    text = _decode(path, line, number)
    try:
        return json.loads(text, object_pairs_hook=_unique_keys if repeated else None)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{number}: expected one JSON object per line, got {error.msg!r}; mend this line") from error
    except RecursionError as error:
        raise DataError(f"{path}:{number}: expected JSON, got an object that is nested too deeply; flatten it") from error
    except ValueError as error:
        raise DataError(
            f"{path}:{number}: expected JSON that can be read, got an error ({_one_line(error)}); mend this line"
        ) from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    repeated = [name for name, n in Counter(name for name, _ in pairs).items() if n > 1]
    if repeated:
        raise ValueError(f"the key {repeated[0]!r} is given twice")
    return dict(pairs)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
