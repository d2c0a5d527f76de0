"""Try files that are not texts: files of every kind under every name."""

from __future__ import annotations

import gzip
import json
import os
import random
import socket
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from faults.findings import Finding, attempt, of_command, shorten
from faults.forks import Child
from faults.junk import value
from faults.runner import Family
from faults.workplace import CONTEXT, Workplace, run_command
from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.documents import check_source
from mtsae_lens.data.token_tables import read_tokens
from mtsae_lens.opening import open_sae

_SECONDS = 10.0
_SENTENCE = "The king sat under the old tree and the river ran on.\n"
_SUFFIXES = (
    ".txt",
    ".jsonl",
    ".json",
    ".parquet",
    ".md",
    ".csv",
    ".arrow",
    ".txt.gz",
    ".jsonl.gz",
    ".txt.zst",
    ".gz",
    "",
    ".TXT",
)
_BYTES: dict[str, Callable[[random.Random], bytes]] = {
    "nothing": lambda rng: b"",
    "spaces": lambda rng: b" \n\t\n" * 50,
    "a text": lambda rng: (_SENTENCE * 100).encode(),
    "one letter": lambda rng: b"a",
    "one huge line": lambda rng: (_SENTENCE.strip() * 2000).encode(),
    "special tokens alone": lambda rng: b"<|endoftext|>" * 60,
    "random bytes": lambda rng: rng.randbytes(3000),
    "NUL after 64 KiB": lambda rng: (_SENTENCE * 1300).encode() + b"\x00" + _SENTENCE.encode(),
    "UTF-16": lambda rng: (_SENTENCE * 50).encode("utf-16"),
    "UTF-32": lambda rng: (_SENTENCE * 50).encode("utf-32"),
    "Latin-1": lambda rng: (_SENTENCE.replace("i", "é") * 50).encode("latin-1"),
    "a BOM": lambda rng: b"\xef\xbb\xbf" + (_SENTENCE * 50).encode(),
    "half a character": lambda rng: ("é" * 400).encode()[:-1],
    "control characters": lambda rng: bytes(range(1, 32)) * 60,
    "gzip": lambda rng: gzip.compress((_SENTENCE * 100).encode()),
    "half of a gzip": lambda rng: gzip.compress(rng.randbytes(2000))[:900],
    "zstd's first bytes": lambda rng: b"\x28\xb5\x2f\xfd" + rng.randbytes(300),
    "xz": lambda rng: b"\xfd7zXZ\x00" + rng.randbytes(200),
    "zip": lambda rng: b"PK\x03\x04" + rng.randbytes(200),
    "PDF": lambda rng: b"%PDF-1.4\n" + rng.randbytes(500),
    "carriage returns": lambda rng: (_SENTENCE.replace("\n", "\r") * 50).encode(),
}
_ROWS: dict[str, Callable[[random.Random], str]] = {
    "rows": lambda rng: json.dumps({"text": _SENTENCE * 20}),
    "no JSON": lambda rng: "{text: no}",
    "half a row": lambda rng: '{"text": "cut',
    "an integer of 10,000 digits": lambda rng: '{"text": "a", "n": ' + "9" * 10_000 + "}",
    "nested 100,000 deep": lambda rng: "[" * 100_000 + "]" * 100_000,
    "a row nested 100,000 deep": lambda rng: '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "null": lambda rng: "null",
    "a list": lambda rng: "[1, 2]",
    "a string": lambda rng: '"text"',
    "no text": lambda rng: '{"words": "x"}',
    "an odd text": lambda rng: json.dumps({"text": value(rng)}),
    "an odd row": lambda rng: json.dumps(value(rng)),
    "NaN": lambda rng: '{"text": NaN}',
    "two texts": lambda rng: '{"text": "a", "text": 3}',
    "half a surrogate": lambda rng: '{"text": "\\ud800 the king sat"}',
    "NUL": lambda rng: '{"text": "a\\u0000b"}',
    "empty": lambda rng: '{"text": ""}',
}
_COLUMNS: dict[str, Callable[[], dict[str, Any]]] = {
    "text": lambda: {"text": pa.array([_SENTENCE * 20] * 5)},
    "no text": lambda: {"words": pa.array(["a"])},
    "nulls": lambda: {"text": pa.array([None, _SENTENCE * 20, None], pa.string())},
    "nulls alone": lambda: {"text": pa.nulls(4, pa.string())},
    "the null type": lambda: {"text": pa.nulls(4)},
    "no rows": lambda: {"text": pa.array([], pa.string())},
    "numbers": lambda: {"text": pa.array([1, 2])},
    "bytes": lambda: {"text": pa.array([b"\xff\xfe", b"abc"])},
    "a dictionary": lambda: {"text": pa.array([_SENTENCE * 20] * 5).dictionary_encode()},
    "large strings": lambda: {"text": pa.array([_SENTENCE * 20] * 5, pa.large_string())},
    "views": lambda: {"text": pa.array([_SENTENCE * 20] * 5, pa.string_view())},
    "lists": lambda: {"text": pa.array([["a", "b"]])},
    "structs": lambda: {"text": pa.array([{"a": "b"}])},
    "dates": lambda: {"text": pa.array([0], pa.date32())},
}
_NAMES = ("a b", "é", "a\nb", "a\x1b[31mb", "-x", "..x", "x" * 200, "%s", "*", "text", "'", "$HOME", "a,b", "#", "a+b", "a:b")
_PLACES = ("a FIFO", "a socket", "a loop of links", "a dangling link", "a link to a device", "an empty folder", "a nested folder",
           "a folder of everything", "a hidden file", "no such file", "a folder that links to itself")  # fmt: skip


def make_source(folder: Path, rng: random.Random) -> tuple[Path, str]:
    """Make a file or folder to give as a text, and return it with a description."""
    name, draw = (rng.choice(_NAMES) if rng.random() < 0.3 else "words"), rng.random()
    if draw < 0.35:
        kind, suffix = rng.choice(sorted(_BYTES)), rng.choice(_SUFFIXES)
        path = folder / f"{name}{suffix}"
        path.write_bytes(_BYTES[kind](rng))
    elif draw < 0.65:
        kind, suffix = rng.choice(sorted(_ROWS)), rng.choice((".jsonl", ".jsonl", ".json"))
        path = folder / f"{name}{suffix}"
        rows = [_ROWS["rows"](rng) for _ in range(rng.choice((0, 3)))] + [_ROWS[kind](rng)]
        rng.shuffle(rows)
        path.write_text("\n".join(rows), errors="surrogatepass")
    elif draw < 0.85:
        kind = rng.choice(sorted(_COLUMNS))
        path = folder / f"{name}.parquet"
        pq.write_table(pa.table(_COLUMNS[kind]()), path)
        if rng.random() < 0.2:
            content = path.read_bytes()
            path.write_bytes(content[: rng.randrange(len(content))])
            kind += ", cut"
    else:
        kind = rng.choice(_PLACES)
        path = _make_place(folder, kind)
    return path, f"{kind} in {shorten(path.name, 40)}"


def _make_place(folder: Path, kind: str) -> Path:
    path = folder / "words.txt"
    match kind:
        case "a FIFO":
            os.mkfifo(path)
        case "a socket":
            with socket.socket(socket.AF_UNIX) as bound:
                here = os.open(folder, os.O_RDONLY)
                bound.bind(f"/proc/self/fd/{here}/words.txt")
                os.close(here)
        case "a loop of links":
            path.symlink_to("other.txt")
            (folder / "other.txt").symlink_to("words.txt")
        case "a dangling link":
            path.symlink_to("nowhere.txt")
        case "a link to a device":
            path.symlink_to("/dev/zero")
        case "no such file":
            pass
        case "a hidden file":
            path = folder / ".words.txt"
            path.write_text(_SENTENCE * 50)
        case _:
            path = folder / "texts"
            path.mkdir()
            _fill(path, kind)
    return path


def _fill(path: Path, kind: str) -> None:
    if kind == "a nested folder":
        deep = path.joinpath(*["d"] * 40)
        deep.mkdir(parents=True)
        (deep / "a.txt").write_text(_SENTENCE * 50)
    if kind == "a folder that links to itself":
        (path / "again").symlink_to(path)
        (path / "a.txt").write_text(_SENTENCE * 50)
    if kind == "a folder of everything":
        os.mkfifo(path / "b.txt")
        (path / "a.txt").write_text(_SENTENCE * 50)
        (path / "._a.txt").write_bytes(b"\x00\x05\x16\x07")
        (path / "c.jsonl").write_text("null")


@cache
def _cutter(workplace: Workplace) -> ContextCutter:
    return open_sae(workplace.sae)[0].cutter


def source(workplace: Workplace, rng: random.Random, folder: Path) -> Finding:
    """An odd text, checked and read."""
    path, what = make_source(folder, rng)
    split = rng.choice(("train", "train", "select", "tune", "test"))

    def use() -> str:
        check_source(str(path))
        table = read_tokens(str(path), split, _cutter(workplace), 8)
        return "done" if table.tokens.shape[1] == CONTEXT else "different"

    outcome, detail = attempt(use, _SECONDS)
    return Finding(outcome, what, detail)


def trained_on(workplace: Workplace, rng: random.Random, folder: Path) -> Finding:
    """An odd text in a training or an exploration by the command line."""
    path, what = make_source(folder, rng)
    verb = rng.choice(("train", "explore"))
    given = ["train"] if verb == "train" else ["explore", str(workplace.sae)]
    words = [*given, "--config", str(workplace.config(verb)), "--out", "run", f"--dataset={path}"]
    outcome, detail = of_command(Child(partial(run_command, tuple(words)), folder).wait(2 * _SECONDS))
    return Finding(outcome, f"{verb} on {what}", detail)


_PROMISE = "A text that cannot be read is refused in one line. If a part of it cannot be read, that part is named. Reading never hangs."
FAMILIES = [
    Family(
        name="input/text",
        promise=_PROMISE,
        method=f"{len(_BYTES) + len(_ROWS) + len(_COLUMNS) + len(_PLACES)} kinds of file with odd names, read as a split",
        trial=source,
        count=1500,
        quick=60,
        injects=False,
        prepare=lambda workplace: workplace.sae,
        seconds=_SECONDS,
        per_process=100,
    ),
    Family(
        name="input/training-text",
        promise=_PROMISE,
        method="the same files in `train` and `explore` by the command line",
        trial=trained_on,
        count=300,
        quick=4,
        injects=False,
        prepare=lambda workplace: workplace.sae,
        seconds=2 * _SECONDS + 5,
        per_process=20,
    ),
]
