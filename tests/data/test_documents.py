"""Documents: every kind of source, splits, and the bounded shuffle."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtsae_lens.data.documents import (
    N_BIOGRAPHIES_EACH,
    SPLITS,
    check_source,
    embedded_domains,
    read_documents,
    shuffle_stream,
)
from mtsae_lens.data.people import make_people
from mtsae_lens.data.text_files import DOCUMENT_CHARS
from mtsae_lens.errors import DataError

TEXTS = [f"Document {number} speaks of {number * 7}." for number in range(40)]


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n\n" for text in texts))
    return path


def write_parquet(path: Path, texts: list[str]) -> Path:
    pq.write_table(pa.table({"text": texts, "other": range(len(texts))}), path)
    return path


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_rows_become_documents(tmp_path: Path, write) -> None:
    suffix = write.__name__.removeprefix("write_")
    path = write(tmp_path / f"texts.{suffix}", TEXTS)
    assert [d.text for d in read_documents(str(path))] == TEXTS


def test_txt_is_cut_at_lines_without_losing_words(text_file: Path) -> None:
    documents = list(read_documents(str(text_file)))
    assert " ".join(d.text for d in documents).split() == text_file.read_text().split()
    assert all(DOCUMENT_CHARS / 2 < len(d.text) < 2 * DOCUMENT_CHARS for d in documents[:-1])


def test_folder_is_all_its_files_in_order_of_name(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write_parquet(tmp_path / "sub" / "b.parquet", TEXTS[20:])
    write_jsonl(tmp_path / "a.jsonl", TEXTS[:20])
    (tmp_path / "ignored.md").write_text("not this")
    assert [d.text for d in read_documents(str(tmp_path))] == TEXTS


def test_embedded_is_all_domains_and_a_domain_one_of_them() -> None:
    names = Counter(d.name.split("/")[0] for d in read_documents("embedded"))
    assert set(names) == set(embedded_domains())
    domain = embedded_domains()[0]
    documents = list(read_documents(domain))
    assert len(documents) == names[domain]
    assert {d.name.split("/")[0] for d in documents} == {domain}


@pytest.mark.parametrize("source", ["embedded", "kjv", "file"])
def test_splits_part_the_documents(source: str, text_file: Path) -> None:
    source = str(text_file) if source == "file" else source
    of_split = {split: [d.name for d in read_documents(source, split)] for split in SPLITS}
    everything = [name for names in of_split.values() for name in names]
    assert all(of_split.values())
    assert len(set(everything)) == len(everything)
    assert Counter(everything) == Counter(d.name for d in read_documents(source))
    assert all(d.split == split for split in SPLITS for d in read_documents(source, split))


def test_a_document_keeps_its_split_when_the_source_grows(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "texts.jsonl", TEXTS[:25])
    before = {d.text: d.split for d in read_documents(str(path))}
    write_jsonl(path, TEXTS)
    after = {d.text: d.split for d in read_documents(str(path))}
    assert {text: after[text] for text in before} == before
    assert Counter(after.values()) == {"train": 28, "select": 4, "tune": 4, "test": 4}


@pytest.mark.parametrize("buffer_size", [1, 3, 10, 1000])
def test_shuffle_stream_is_a_seeded_permutation(buffer_size: int) -> None:
    items = list(range(50))
    shuffled = list(shuffle_stream(items, 7, buffer_size))
    assert sorted(shuffled) == items
    assert shuffled == list(shuffle_stream(items, 7, buffer_size))
    if buffer_size > 1:
        assert shuffled != items
        assert shuffled != list(shuffle_stream(items, 8, buffer_size))


def test_shuffle_stream_reads_no_farther_than_its_buffer() -> None:
    read = 0

    def endless():
        nonlocal read
        while True:
            yield (read := read + 1)

    stream = shuffle_stream(endless(), 0, buffer_size=10)
    taken = [next(stream) for _ in range(30)]
    assert read <= 40
    assert len(set(taken)) == 30


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "no text in it"),
        ("blank.txt", b" \n\n \n", "no text in it"),
        ("binary.txt", b"PNG\0\1\2", "binary"),
        ("latin.txt", "caf\u00e9 ".encode("latin-1") * 9, "not UTF-8 at byte 3.*iconv"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": \n', "bad.jsonl:2: not JSON"),
        ("other.jsonl", b'{"body": "a"}\n', "other.jsonl:1: needed an object with a string under 'text'; got {'body': str}"),
        ("nested.jsonl", b'{"doc": {"text": "a"}, "text": null}\n', "nested.jsonl:1: .* got {'doc': dict, 'text': NoneType}"),
        ("rows.jsonl", b'{"text": "a"}\n["a"]\n', "rows.jsonl:2: needed an object .*; got a list"),
        ("latin.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', "latin.jsonl:2: not UTF-8 at byte 10"),
        ("half.jsonl", b'{"text": "ab \\ud83d"}\n', "half.jsonl:1: character 3 is half of a surrogate pair"),
        (
            "of windows.txt",
            "some words".encode("utf-16"),
            "iconv -f UTF-16 -t UTF-8 '.*of windows.txt' > 'of windows-utf8.txt'",
        ),
        ("list.jsonl", b'["a"]\n', "needed an object"),
        ("number.jsonl", b'{"text": 3}\n', "needed an object"),
        ("bad.parquet", b"not parquet", "not a parquet file"),
        ("what.docx", b"a", "cannot read .docx"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_documents(str(path)))


def test_parquet_without_text_names_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["a"], "title": ["b"]}), path)
    with pytest.raises(DataError, match="no column 'text'; it has body, title"):
        list(read_documents(str(path)))


def test_parquet_with_numbers_under_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [1, 2]}), path)
    with pytest.raises(DataError, match="text"):
        list(read_documents(str(path)))


@pytest.mark.parametrize("source", ["no-such-domain", "missing.txt", "./missing", "/missing/folder"])
def test_what_is_no_source_is_refused_at_once(source: str) -> None:
    with pytest.raises(DataError, match="no file, folder or embedded domain"):
        check_source(source)


def test_no_source_is_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError):
        check_source("")


def test_biographies_tell_every_person_many_times_and_say_when_which_is_held_out() -> None:
    documents = list(read_documents("biographies"))
    people = {person.name: person for person in make_people()}
    assert Counter(d.name.split("/")[1] for d in documents) == dict.fromkeys(people, N_BIOGRAPHIES_EACH)
    assert len({d.name for d in documents}) == len({d.text for d in documents}) == len(documents)
    for document in documents[::97]:
        assert all(fact in document.text for fact in people[document.name.split("/")[1]].facts.values())
    of_person = defaultdict(Counter)
    for document in documents:
        of_person[document.name.split("/")[1]][document.split] += 1
    assert all(splits == {"train": 28, "select": 4, "tune": 4, "test": 4} for splits in of_person.values())
    assert [d.text for d in documents] == [d.text for d in read_documents("biographies")]
    assert "biographies" not in embedded_domains()


def test_joined_sources_are_read_one_after_the_other_with_their_own_splits(text_file: Path, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", TEXTS)
    for parts in ((str(text_file), "kjv"), ("kjv", str(text_file), str(rows)), ("embedded", "biographies")):
        expected = [d for part in parts for d in read_documents(part)]
        assert list(read_documents("+".join(parts))) == expected
    tune = [d.text for part in ("kjv", str(rows)) for d in read_documents(part, "tune")]
    assert [d.text for d in read_documents(f"kjv+{rows}", "tune")] == tune


def test_a_file_with_a_plus_in_its_name_is_that_file(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "kjv+sotu.jsonl", TEXTS)
    assert [d.text for d in read_documents(str(path))] == TEXTS


@pytest.mark.parametrize("source", ["kjv+no-such-domain", "no-such-domain+kjv", "kjv+./missing.txt"])
def test_a_bad_part_of_joined_sources_is_named_before_any_work(source: str) -> None:
    bad = next(part for part in source.split("+") if part != "kjv")
    with pytest.raises(DataError, match=f"no file, folder or embedded domain '{bad}'"):
        check_source(source)


def test_every_part_of_joined_sources_is_opened_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "what.docx").write_text("a")
    with pytest.raises(DataError, match=r"cannot read \.docx"):
        check_source(f"kjv+{tmp_path / 'what.docx'}")


@pytest.mark.parametrize("source", ["kjv+", "+kjv", "kjv++sotu", "+"])
def test_joined_sources_need_every_part(source: str) -> None:
    with pytest.raises(DataError, match="no file, folder or embedded domain"):
        check_source(source)


def test_near_names_are_suggested() -> None:
    with pytest.raises(DataError, match="Did you mean 'shakespeare'"):
        check_source("shakespear")


def test_a_folder_with_the_name_of_a_file_is_read_once(tmp_path: Path) -> None:
    """Twice, and the same text would be trained and measured on."""
    (tmp_path / "kept.txt").mkdir()
    write_jsonl(tmp_path / "kept.txt" / "a.jsonl", TEXTS)
    assert [document.text for document in read_documents(str(tmp_path))] == TEXTS


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfFirst words")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "second words"}\n')
    assert [document.text for document in read_documents(str(tmp_path))] == ["First words", "second words"]


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \.txt, \.jsonl, \.parquet file"):
        check_source(str(tmp_path))


def fake_hub(monkeypatch: pytest.MonkeyPatch, rows: list[dict]) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda name, split, streaming: iter(rows))


def test_hub_rows_are_kept_by_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": text, "meta": {"pile_set_name": "Github" if i % 2 else "ArXiv"}} for i, text in enumerate(TEXTS)]
    fake_hub(monkeypatch, rows)
    assert [d.text for d in read_documents("a/pile@pile_set_name=Github")] == TEXTS[1::2]
    assert [d.text for d in read_documents("a/pile")] == TEXTS


@pytest.mark.parametrize(("source", "row"), [("a/b", {"body": "x"}), ("a/b@c=d", {"text": "x", "meta": None})])
def test_hub_rows_of_another_form_are_refused(monkeypatch: pytest.MonkeyPatch, source: str, row: dict) -> None:
    fake_hub(monkeypatch, [row])
    with pytest.raises(DataError):
        list(read_documents(source))
