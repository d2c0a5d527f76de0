"""Test the parser of the string that names a source."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtsae_lens.data.rows import RowChoice
from mtsae_lens.data.sources import local_path, parse_part, source_parts


def test_a_dataset_on_the_hub_with_everything() -> None:
    part = parse_part("owner/name?config=en&split=validation&column=content@meta.source=a=b (en)")
    assert (part.name, part.path, part.config, part.split) == ("owner/name", None, "en", "validation")
    assert part.choice == RowChoice("content", "meta.source", "a=b (en)")
    assert not part.is_plain
    plain = parse_part("owner/name")
    assert plain.is_plain
    assert (plain.config, plain.split, plain.choice) == (None, None, RowChoice())


def test_values_may_hold_what_separates() -> None:
    part = parse_part("owner/name?column=a%26b%2Bc@lang=C%2B%2B")
    assert part.choice == RowChoice("a&b+c", "lang", "C++")
    assert source_parts("kjv+owner/name?column=a%2Bb@x=y+sotu") == ["kjv", "owner/name?column=a%2Bb@x=y", "sotu"]


@pytest.mark.parametrize(
    ("files", "source", "parts"),
    [
        (["dir/a b+c.jsonl"], "dir/a b+c.jsonl+kjv", ["dir/a b+c.jsonl", "kjv"]),
        (["dir/a b+c.jsonl"], "kjv+dir/a b+c.jsonl?column=x@y=z+sotu", ["kjv", "dir/a b+c.jsonl?column=x@y=z", "sotu"]),
        (["a", "a+b", "a+b+c"], "a+b+c+a+b", ["a+b+c", "a+b"]),
        (["a", "b"], "a+b", ["a", "b"]),
        (["1+2+3.txt", "3.txt"], "3.txt+1+2+3.txt", ["3.txt", "1+2+3.txt"]),
    ],
)
def test_the_longest_name_that_exists_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], source: str, parts: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in files:
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).touch()
    assert source_parts(source) == parts


def test_names_that_no_file_can_have() -> None:
    for name in ("x" * 5_000, "a\0b", "", " ", "~nobody-of-this-name/x"):
        assert local_path(name) is None
        assert source_parts(name) == [name]


@pytest.mark.parametrize(
    ("value", "found", "matches"),
    [
        ("7", 7, True),
        ("7", 7.0, True),
        ("7", "7", True),
        ("7", 70, False),
        ("x", 7, False),
        ("true", True, True),
        ("True", True, True),
        ("1", True, False),
        ("false", False, True),
        ("", None, False),
        ("9007199254740993", 9007199254740993, True),
        ("9007199254740992", 9007199254740993, False),
        ("0.5", 0.5, True),
        ("a", "a", True),
        ("a", "A", False),
    ],
)
def test_values_are_compared_as_what_they_are(value: str, found: object, matches: bool) -> None:
    assert RowChoice("text", "field", value).matches(found) is matches
