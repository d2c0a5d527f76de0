"""Test text files: compressed files, files with the wrong suffix, and files that are not regular."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtsae_lens.data.text_files import read_texts
from mtsae_lens.errors import DataError

TEXTS = [f"Document {number} speaks of {number * 7}." for number in range(40)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


def zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("name", ["a.jsonl{}", "A.JSONL{}", "a.jsonl"])  # the last: compressed under another name
def test_compressed_rows(tmp_path: Path, suffix: str, name: str) -> None:
    path = tmp_path / name.format(suffix)
    compress = COMPRESS[suffix]
    path.write_bytes(compress(LINES[:700]) + compress(LINES[700:]))  # as `cat a.gz b.gz` joins them
    assert list(read_texts(path)) == TEXTS


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_text(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](b"First words.\n\nLast words."))
    assert list(read_texts(path)) == ["First words.\n\nLast words."]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_files_that_are_cut_short(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](LINES)[:-20])
    with pytest.raises(DataError, match=r"a.jsonl.*damaged|a.jsonl.*(T|t)runcated"):
        list(read_texts(path))


def zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.jsonl", data)
    return buffer.getvalue()


def parquet(**columns: object) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "a.jsonl",
            parquet(text=TEXTS),
            "expected .jsonl contents, got a parquet file; give it a name that ends with .parquet",
        ),
        ("a.txt", zipped(LINES), "expected .txt contents, got a zip archive; unpack it"),
        (
            "a.parquet",
            gzip.compress(parquet(text=TEXTS)),
            r"expected .parquet contents, got a compressed file \(gzip\); unpack it",
        ),
        ("a.gz", gzip.compress(LINES), "expected a file that ends with one of .txt, .jsonl, .parquet .* got .gz; convert it"),
    ],
)
def test_files_of_another_kind_than_their_name_says(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        list(read_texts(path))


def test_pipes_and_sockets_are_refused_and_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    os.mkfifo("pipe.txt")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jsonl")
        for name in ("pipe.txt", "socket.jsonl"):
            with pytest.raises(DataError, match=f"{name}: expected a regular file"):
                list(read_texts(Path(name)))


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES)
    texts = read_texts(path)
    next(texts)
    with path.open("ab") as file:
        file.write(LINES)
    with pytest.raises(DataError, match="change while it was read"):
        list(texts)


def test_a_file_that_goes_away(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(LINES)
    texts = read_texts(tmp_path)
    next(texts)
    (tmp_path / "b.jsonl").unlink()
    with pytest.raises(DataError, match=r"b.jsonl: expected a readable file, got the error No such file"):
        list(texts)


@pytest.mark.parametrize("end", [b"\r", b"\r\n", b"\n"])
def test_line_ends_of_every_system(tmp_path: Path, end: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES.replace(b"\n", end))
    assert list(read_texts(tmp_path / "a.jsonl")) == TEXTS
    (tmp_path / "b.txt").write_bytes(b"one" + end + b"two" + end + end + b"three")
    assert list(read_texts(tmp_path / "b.txt")) == ["one\ntwo\n\nthree"]


def test_a_carriage_return_between_the_parts_of_json(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text":\r"one",\r"n":\r1}\n{"text": "two", "meta": {"text": "inside"}}\n')
    assert list(read_texts(path)) == ["one", "two"]


def test_a_text_file_has_no_columns(tmp_path: Path) -> None:
    from mtsae_lens.data.documents import read_documents

    (tmp_path / "a.txt").write_text("words")
    for suffix in ("?column=body", "@id=3"):
        with pytest.raises(DataError, match=r"a .txt file, which has no columns"):
            list(read_documents(f"{tmp_path / 'a.txt'}{suffix}"))


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.large_string()),
    ],
)
def test_strings_of_arrow_of_every_kind(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "a.parquet"
    array = pa.array([*TEXTS, None], pa.string())
    array = array.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else array.cast(kind)
    pq.write_table(pa.table({"text": array, "n": range(len(array))}), path)
    assert list(read_texts(path)) == TEXTS


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            pa.Table.from_arrays([pa.array(TEXTS)] * 2, ["text", "text"]),
            "expected one column 'text', got 2 of that name; rename all but one",
        ),
        (pa.table({"text": [text.encode() for text in TEXTS]}), "expected strings in column 'text', got binary"),
        (pa.table({"text": [[text] for text in TEXTS]}), "expected strings in column 'text', got list"),
        (pa.table({"text": [{"a": text} for text in TEXTS]}), "expected strings in column 'text', got struct"),
        (pa.table({"txet": TEXTS}), "expected a column 'text', got txet; .*Did you mean 'txet'"),
    ],
)
def test_parquet_files_without_one_column_of_strings(tmp_path: Path, table: pa.Table, message: str) -> None:
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=message):
        list(read_texts(tmp_path / "a.parquet"))


def test_a_parquet_file_of_no_rows_has_no_text(tmp_path: Path) -> None:
    for number, table in enumerate([pa.table({"text": pa.array([], pa.string())}), pa.table({"text": pa.nulls(5)})]):
        pq.write_table(table, tmp_path / f"{number}.parquet")
        assert list(read_texts(tmp_path / f"{number}.parquet")) == []


def test_damaged_pages_of_a_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": [f"{text} {number}" for number, text in enumerate(TEXTS * 200)]}), path, compression="zstd"
    )
    data = bytearray(path.read_bytes())
    data[40 : len(data) // 2] = bytes(len(data) // 2 - 40)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a.parquet: .*got damage after row 0 .*; make the file again"):
        list(read_texts(path))
