"""Test documents: every kind of source, the splits, and the shuffle within a bounded buffer."""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtsae_lens.data.documents import (
    N_BIOGRAPHIES_EACH,
    SPLITS,
    check_rows,
    check_source,
    embedded_domains,
    read_documents,
    read_rows,
    shuffle_stream,
)
from mtsae_lens.data.people import make_people, people_of
from mtsae_lens.data.text_cutting import DOCUMENT_CHARS
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
        ("empty.txt", b"", "expected at least one non-empty document"),
        ("blank.txt", b" \n\n \n", "expected at least one non-empty document"),
        ("binary.txt", b"PNG\0\1\2", "binary"),
        ("latin.txt", "caf\u00e9 ".encode("latin-1") * 9, "expected UTF-8, got something else at byte 3.*iconv"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": \n', "bad.jsonl:2: expected one JSON object per line"),
        ("other.jsonl", b'{"body": "a"}\n', "other.jsonl:1: expected an object with a string under 'text', got {'body': str}"),
        ("nested.jsonl", b'{"doc": {"text": "a"}}\n', r"nested.jsonl:1: .* got {'doc': dict}; .* Did you mean 'doc.text'"),
        ("late.txt", b"word " * 20_000 + b"\0", "expected text, got binary data .byte 100000 is zero"),
        (
            "huge number.jsonl",
            b'{"text": "a", "n": 1' + b"0" * 10_000 + b"}\n",
            "huge number.jsonl:1: expected JSON",
        ),
        ("deep.jsonl", b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "deep.jsonl:1: .*nested too deep"),
        ("twice.jsonl", b'{"text": "a", "text": "b"}\n', "twice.jsonl:1: .*the key 'text' is given twice"),
        ("true.jsonl", b'{"text": "a"}\n{"text": true}\n', "true.jsonl:2: expected an object .* got {'text': bool}"),
        ("ids.jsonl", b'{"input_ids": [1, 2]}\n', "ids.jsonl:1: .*token ids .input_ids. are not read"),
        ("rows.jsonl", b'{"text": "a"}\n["a"]\n', "rows.jsonl:2: expected an object .* got a list"),
        ("latin.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', "latin.jsonl:2: expected UTF-8, got something else at byte 10"),
        ("half.jsonl", b'{"text": "ab \\ud83d"}\n', "half.jsonl:1: .*got half of a surrogate pair at character 3"),
        (
            "of windows.txt",
            "some words".encode("utf-16"),
            "iconv -f UTF-16 -t UTF-8 '.*of windows.txt' > 'of windows-utf8.txt'",
        ),
        ("list.jsonl", b'["a"]\n', "expected an object"),
        ("number.jsonl", b'{"text": 3}\n', "expected an object"),
        ("bad.parquet", b"not parquet", "expected a parquet file"),
        ("what.docx", b"a", "got .docx"),
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
    with pytest.raises(DataError, match="expected a column 'text', got body, title"):
        list(read_documents(str(path)))


def test_parquet_with_numbers_under_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [1, 2]}), path)
    with pytest.raises(DataError, match="text"):
        list(read_documents(str(path)))


@pytest.mark.parametrize("source", ["no-such-domain", "missing.txt", "./missing", "/missing/folder"])
def test_what_is_no_source_is_refused_at_once(source: str) -> None:
    with pytest.raises(DataError, match="expected a file, a folder, an embedded domain"):
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


def test_biographies_of_the_first_people_of_a_group_are_some_of_the_groups() -> None:
    few, group = list(read_documents("biographies:retain/3", "tune")), list(read_documents("biographies:retain", "tune"))
    assert {d.name.split("/")[1] for d in few} == {person.name for person in people_of("retain")[:3]}
    assert {d.text for d in few} < {d.text for d in group}
    with pytest.raises(DataError, match="got 'biographies:retain/121'"):
        check_source("biographies:retain/121")


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
    with pytest.raises(DataError, match=f"expected a file, a folder, an embedded domain or owner/name on the hub, got '{bad}'"):
        check_source(source)


def test_every_part_of_joined_sources_is_opened_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "what.docx").write_text("a")
    with pytest.raises(DataError, match=r"got \.docx"):
        check_source(f"kjv+{tmp_path / 'what.docx'}")


@pytest.mark.parametrize("source", ["kjv+", "+kjv", "kjv++sotu", "+"])
def test_joined_sources_need_every_part(source: str) -> None:
    with pytest.raises(DataError, match="expected a file, a folder, an embedded domain"):
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
    with pytest.raises(DataError, match=r"\.txt, \.jsonl, \.parquet files, got none"):
        check_source(str(tmp_path))


def fake_hub(monkeypatch: pytest.MonkeyPatch, rows: list[dict]) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda path, name=None, *, split, streaming: iter(rows))


def test_hub_rows_are_kept_by_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": text, "meta": {"pile_set_name": "Github" if i % 2 else "ArXiv"}} for i, text in enumerate(TEXTS)]
    fake_hub(monkeypatch, rows)
    assert [d.text for d in read_documents("a/pile@pile_set_name=Github")] == TEXTS[1::2]
    assert [d.text for d in read_documents("a/pile")] == TEXTS


@pytest.mark.parametrize(
    ("source", "row", "message"),
    [
        ("a/b", {"body": "x"}, "a/b, row 0: .*got {'body': str}; name the column of the text with SOURCE.column=NAME"),
        ("a/b", {"text": 3}, "a/b, row 0: expected an object with a string under 'text', got {'text': int}"),
        ("a/b@c=d", {"text": "x", "meta": None}, "a/b@c=d: expected rows with a field 'c', got none in 1 rows"),
        ("a/b@c=d", {"text": "x", "c": "e"}, "expected rows with c='d', got none in 1 rows; give one of its values: 'e'"),
    ],
)
def test_hub_rows_of_another_form_are_refused(monkeypatch: pytest.MonkeyPatch, source: str, row: dict, message: str) -> None:
    fake_hub(monkeypatch, [row])
    with pytest.raises(DataError, match=message):
        list(read_documents(source))


def test_a_source_without_text_is_refused_before_any_work(tmp_path: Path) -> None:
    for name in ("a.txt", "b.jsonl"):
        (tmp_path / name).touch()
    for source in (tmp_path, f"{tmp_path / 'a.txt'}", f"kjv+{tmp_path / 'b.jsonl'}"):
        with pytest.raises(DataError, match="expected at least one non-empty document"):
            check_source(str(source))


ROWS = [
    {
        "text": text,
        "body": f"body {text}",
        "id": i,
        "ok": i % 2 == 0,
        "lang": "xx",
        "meta": {"lang": f"l{i % 3}", "set": f"s{i % 3}"},
    }
    for i, text in enumerate(TEXTS)
]


@pytest.fixture(params=["jsonl", "jsonl.gz", "parquet", "hub"])
def rows_source(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[dict]], str]:
    """Rows as a source, in every form that has rows."""

    def write(rows: list[dict]) -> str:
        path = tmp_path / f"rows.{request.param}"
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        if request.param == "hub":
            fake_hub(monkeypatch, rows)
            return "owner/rows"
        if request.param == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        else:
            path.write_bytes(gzip.compress(lines) if request.param.endswith("gz") else lines)
        return str(path)

    return write


@pytest.mark.parametrize(
    ("suffix", "expected"),
    [
        ("?column=body", [row["body"] for row in ROWS]),
        ("@id=7", [TEXTS[7]]),
        ("@id=7.0", [TEXTS[7]]),
        ("@ok=true", TEXTS[::2]),
        ("@meta.lang=l1", TEXTS[1::3]),
        ("@set=s1", TEXTS[1::3]),
        ("?column=meta.lang@id=4", ["l1"]),
        ("?column=body@body=body%20" + TEXTS[3].replace(" ", "%20"), [ROWS[3]["body"]]),
    ],
)
def test_column_and_filter_in_every_form_of_rows(rows_source: Callable, suffix: str, expected: list[str]) -> None:
    assert [d.text for d in read_documents(rows_source(ROWS) + suffix)] == expected


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        ("?column=bdy", "Did you mean 'body'"),
        ("?column=meta.lng", "Did you mean 'meta.lang'"),
        ("@id=70", "expected rows with id='70', got none in 40 rows; give one of its values: '0', '1'"),
        ("@idd=7", "field.* Did you mean 'id'"),
        ("?colum=body", "got 'colum'. Did you mean 'column'"),
        ("?column=", "expected one value after column="),
        ("@id", "expected NAME.key=value"),
    ],
)
def test_what_is_misspelt_in_a_source_is_named(rows_source: Callable, suffix: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(read_documents(rows_source(ROWS) + suffix))


def test_rows_without_text_are_skipped_and_counted_once(rows_source: Callable, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"text": text, "n": 0} for text in (None, TEXTS[0], "", TEXTS[1], " \n ", TEXTS[2])]
    source = rows_source(rows)
    check_source(source)
    assert [d.text for d in read_documents(source)] == [d.text for d in read_documents(source)] == TEXTS[:3]
    told = [record.getMessage() for record in caplog.records]
    assert told == [f"warning: {source}: skipped 3 of 6 rows, whose text is null or empty"]


def test_a_long_row_is_cut_as_a_text_file_is(rows_source: Callable) -> None:
    text = "The ship came home with salt and rope. " * 8_000
    documents = list(read_documents(rows_source([{"text": text}, {"text": TEXTS[0]}])))
    assert " ".join(d.text for d in documents[:-1]).split() == text.split()
    assert documents[-1].text == TEXTS[0]
    assert {d.split for d in documents} == set(SPLITS)


def test_rows_given_in_place_of_a_source() -> None:
    rows = [{"text": TEXTS[0]}, {"text": None}, {"text": " "}, {"text": TEXTS[1]}]
    assert [(d.text, d.split) for d in read_rows(rows)] == [(text, "train") for text in TEXTS[:2]]
    with pytest.raises(DataError, match="expected rows that can be read more than once, got a generator"):
        check_rows(row for row in rows)
    with pytest.raises(DataError, match=r"row 0: .*token ids"):
        list(read_rows([{"input_ids": [1, 2]}]))
    with pytest.raises(DataError, match=r"expected rows such as .*, got a int"):
        check_rows(3)


@pytest.mark.parametrize("name", ["a b+c.jsonl", "a@b=c.jsonl", "a?column=b.jsonl", "a:b.jsonl", "kjv+sotu", "x@y?z+.jsonl"])
def test_a_name_that_looks_like_more_than_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = tmp_path / name
    if path.suffix:
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        path.mkdir()
        write_jsonl(path / "rows.jsonl", TEXTS)
    monkeypatch.chdir(tmp_path)
    for source in (str(path), name):
        assert [d.text for d in read_documents(source)] == TEXTS
        joined = [d.text for d in read_documents(f"{source}+milton")]
        assert joined == TEXTS + [d.text for d in read_documents("milton")]
        if path.suffix:
            assert [d.text for d in read_documents(f"milton+{source}?column=body@id=3")][-1] == ROWS[3]["body"]


def test_home_is_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [d.text for d in read_documents("~/a.jsonl?column=text")] == TEXTS


@pytest.mark.parametrize("source", ["kjv?column=text", "embedded@domain=kjv", "biographies:forget?column=text"])
def test_what_ships_with_the_package_has_no_columns(source: str) -> None:
    with pytest.raises(DataError, match="alone, because text of the package"):
        check_source(source)


def hub_of_wikitext(path: str, name: str | None = None, *, split: str, streaming: bool):
    configs = ["wikitext-103-v1", "wikitext-2-v1"]
    if name is None:
        raise ValueError(f"Config name is missing.\nPlease pick one among the available configs: {configs}\nExample: ...")
    if name not in configs:
        raise ValueError(f"BuilderConfig '{name}' not found. Available: {configs}")
    if split not in ("train", "validation"):
        raise ValueError(f"Bad split: {split}. Available splits: ['train', 'validation']")
    assert streaming
    return [{"text": f"{name} {split} {text}"} for text in TEXTS]


def test_configuration_and_split_of_a_dataset_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", hub_of_wikitext)
    source = "Salesforce/wikitext?config=wikitext-2-v1&split=validation"
    assert [d.text for d in read_documents(source)] == [f"wikitext-2-v1 validation {text}" for text in TEXTS]
    assert next(read_documents("Salesforce/wikitext?config=wikitext-103-v1")).text == f"wikitext-103-v1 train {TEXTS[0]}"
    for source, message in {
        "Salesforce/wikitext": r"a configuration must be named; it has wikitext-103-v1, wikitext-2-v1. Give one, such as "
        r"'Salesforce/wikitext\?config=wikitext-103-v1'",
        "Salesforce/wikitext?config=wikitext-2": "no configuration 'wikitext-2'; .* Did you mean 'wikitext-2-v1'",
        "Salesforce/wikitext?config=wikitext-2-v1&split=valid": "no split 'valid'; it has train, validation. .* Did you mean 'validation'",
    }.items():
        with pytest.raises(DataError, match=message):
            check_source(source)


def test_config_and_split_are_not_of_a_local_file(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    with pytest.raises(DataError, match=r"expected only .column=NAME for a local file or folder"):
        check_source(f"{path}?split=train")
