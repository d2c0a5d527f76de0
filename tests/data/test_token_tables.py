"""Test tables of tokens: one split each, every token traced to its document, and what batches of them hold."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from paragraphs import DOCUMENTS, ids_of

from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.documents import read_documents, shuffle_stream
from mtsae_lens.data.token_tables import TokenTable, make_table, read_tokens
from mtsae_lens.errors import DataError


def test_read_tokens_keeps_to_its_split_and_finds_all_of_it(cutter, text_file: Path) -> None:
    tables = {split: read_tokens(str(text_file), split, cutter, 1000) for split in ("train", "select", "tune", "test")}
    unpacked = ContextCutter(cutter.tokenizer, cutter.context_size, packed=False)
    for split, table in tables.items():
        documents = list(read_documents(str(text_file), split))
        assert set(table.pieces.documents) == {d.name for d in documents}
        whole = {tuple(tokens) for _, tokens in unpacked.cut(documents)}
        assert whole <= set(map(tuple, table.tokens.tolist()))
        assert table.tokens.shape == (len(table), cutter.context_size)
        n_tokens = sum(map(len, ids_of(cutter.tokenizer, documents)))
        assert 0 <= n_tokens - int((~cutter.special_positions(table.tokens)).sum()) < cutter.context_size


def test_contexts_of_one_document_are_drawn_where_there_are_enough(cutter, text_file: Path) -> None:
    """As every context was drawn before short documents counted: figures that were published stay what they are."""
    table = read_tokens(str(text_file), "train", cutter, 5)
    documents = list(islice(shuffle_stream(read_documents(str(text_file), "train"), 0), 5))
    contexts = list(replace(cutter, packed=False).cut(documents))
    random.Random(0).shuffle(contexts)
    assert table.tokens.tolist() == [tokens for _, tokens in contexts[:5]]
    assert table.documents == tuple(name for name, _ in contexts[:5])
    assert table.spans is None


def write_mixed(path: Path, n: int = 400) -> Path:
    """One document in five is long; the others are notes shorter than a context."""
    tale = "the old king sat under the tree and the moon ran over the river. "
    texts = [tale * 20 + f"End {i}." if i % 50 in (9, 19) else f"Note {i}: the mast arrived late." for i in range(n)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.mark.parametrize("split", ["train", "select", "tune", "test"])
def test_short_documents_count_in_every_split(cutter, tmp_path: Path, split) -> None:
    source = str(write_mixed(tmp_path / "mixed.jsonl"))
    documents = {d.name: d.text for d in read_documents(source, split)}
    table = read_tokens(source, split, cutter, 10_000)
    pieces, kept = table.pieces, ~cutter.special_positions(table.tokens)
    traced: dict[str, Counter[int]] = defaultdict(Counter)
    for token, piece in zip(table.tokens[kept].tolist(), pieces.of_token[kept].tolist(), strict=True):
        traced[pieces.documents[piece]][token] += 1
    ids = cutter.tokenizer(list(documents.values()), add_special_tokens=False)["input_ids"]
    incomplete = [name for name, tokens in zip(documents, ids, strict=True) if traced[name] != Counter(tokens)]
    assert len(incomplete) <= 4  # what is left at the end of all fills no context
    assert len(documents) == {"train": 280}.get(split, 40)


def test_a_sample_of_a_mixed_corpus_has_both_kinds_of_documents(cutter, tmp_path: Path) -> None:
    source = str(write_mixed(tmp_path / "mixed.jsonl", 4_000))
    table = read_tokens(source, "test", cutter, 64)
    assert len(table) == 64
    lengths = {d.name: len(d.text) for d in read_documents(source, "test")}
    n_short = sum(lengths[name] < 100 for name in set(table.pieces.documents))
    n_long = len(set(table.pieces.documents)) - n_short
    assert min(n_short, n_long) >= 10


@pytest.mark.parametrize("prepend_bos", [True, False])
@pytest.mark.parametrize("context_size", [8, 16])
def test_every_token_of_a_packed_context_is_traced_to_its_document(tokenizer, prepend_bos: bool, context_size: int) -> None:
    cutter = ContextCutter(tokenizer, context_size, prepend_bos)
    table = make_table("packed", list(cutter.contexts(DOCUMENTS)))
    pieces, kept = table.pieces, ~cutter.special_positions(table.tokens)
    traced: dict[str, list[int]] = {}
    for token, piece in zip(table.tokens[kept].tolist(), pieces.of_token[kept].tolist(), strict=True):
        traced.setdefault(pieces.documents[piece], []).append(token)
    expected = {d.name: ids for d, ids in zip(DOCUMENTS, ids_of(tokenizer), strict=True)}
    *whole, last = traced
    assert all(traced[name] == expected[name] for name in whole)
    assert traced[last] == expected[last][: len(traced[last])]
    assert len(whole) > 70
    assert (pieces.of_token.flatten().diff() >= 0).all()
    assert table.documents == tuple(name for name, _ in cutter.cut(DOCUMENTS))


def test_sums_by_piece_and_the_contexts_of_some_documents(tokenizer) -> None:
    cutter = ContextCutter(tokenizer, 16)
    table = make_table("packed", list(cutter.contexts(DOCUMENTS)))
    counted = table.counted(cutter)
    sums = dict.fromkeys(table.pieces.documents, 0)
    for name, n in zip(table.pieces.documents, table.pieces.sum(counted.double()).tolist(), strict=True):
        sums[name] += int(n)
    assert sum(sums.values()) == int(counted.sum())
    chosen = {"d3", "d4", "d17"}
    part = table.only(chosen)
    assert int(part.counted(cutter).sum()) == sum(sums[name] for name in chosen)
    assert {part.pieces.documents[piece] for piece in part.pieces.of_token[:, 1:][part.counted(cutter)].tolist()} == chosen
    again = part.only({"d17", "d5"})
    assert int(again.counted(cutter).sum()) == sums["d17"]
    picked = table.rows([3, 1])
    assert picked.pieces.documents == tuple(name for row in (3, 1) for name, _ in table.all_spans[row])
    plain = TokenTable("plain", table.tokens[:3], ("a", "b", "a"))
    assert plain.only({"a"}).tokens.tolist() == plain.tokens[[0, 2]].tolist()
    assert plain.only({"a"}).answers is None


def test_the_ends_that_are_left_out_of_a_large_corpus_are_told(
    cutter, tmp_path: Path, caplog: pytest.LogCaptureFixture, text_file: Path
) -> None:
    read_tokens(str(text_file), "train", cutter, 5)
    assert not caplog.records  # documents of many contexts: their ends are little
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"{i} " + "the river ran over the bridge. " * 5}) + "\n" for i in range(200)))
    for _ in range(2):
        read_tokens(str(path), "train", cutter, 50)
    (told,) = [record.getMessage() for record in caplog.records]
    assert "contexts of 32 tokens leave out the ends of documents" in told


def test_read_tokens_is_seeded_and_limited(cutter, text_file: Path) -> None:
    few = read_tokens(str(text_file), "train", cutter, 5)
    assert len(few) == 5
    assert torch.equal(few.tokens, read_tokens(str(text_file), "train", cutter, 5).tokens)
    assert not torch.equal(few.tokens, read_tokens(str(text_file), "train", cutter, 5, seed=1).tokens)


def test_read_tokens_draws_from_many_documents(cutter) -> None:
    table = read_tokens("kjv", "train", cutter, 30)
    assert len(set(table.documents)) > 15


def test_read_tokens_packs_short_documents(cutter, tmp_path: Path) -> None:
    path = tmp_path / "short.jsonl"
    path.write_text('{"text": "A short one."}\n' * 200)
    table = read_tokens(str(path), "test", cutter, 2)
    assert cutter.special_positions(table.tokens)[:, 1:].any()


def test_read_tokens_without_text_in_the_split_says_so(cutter, tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("word " * 500)
    with pytest.raises(DataError, match="got 0 documents in split 'test'"):
        read_tokens(str(path), "test", cutter, 2)


def test_batches_hold_what_the_table_holds(cutter: ContextCutter) -> None:
    spans = ((("a", 0), ("b", 2)), (("b", 0),), (("c", 0), ("d", 1), ("e", 3)))
    table = TokenTable("c", torch.arange(12).view(3, 4) % 5, ("a", "b", "c"), spans=spans)
    batches = table.batches(cutter, 2)
    assert [len(batch.tokens) for batch in batches] == [2, 1]
    assert torch.cat([batch.tokens for batch in batches]).equal(table.tokens)
    assert torch.cat([batch.counted for batch in batches]).equal(table.counted(cutter))
    assert not table.counted(cutter).all()  # token 0 is special
    assert [batch.piece.tolist() for batch in batches] == [[[0, 0, 1, 1], [2, 2, 2, 2]], [[0, 1, 1, 2]]]


def test_a_source_may_be_a_path_but_no_list(cutter: ContextCutter, text_file: Path) -> None:
    assert torch.equal(read_tokens(text_file, "test", cutter, 2).tokens, read_tokens(str(text_file), "test", cutter, 2).tokens)
    for texts in (["one", "two"], {"text": ["one"]}):
        with pytest.raises(DataError, match=rf"got a {type(texts).__name__}; write texts in memory to a file first"):
            read_tokens(texts, "test", cutter, 2)  # type: ignore[arg-type]


def test_a_split_that_does_not_exist(cutter: ContextCutter, text_file: Path) -> None:
    with pytest.raises(DataError, match="train, select, tune, test, or None for all, got 'validation'"):
        read_tokens(text_file, "validation", cutter, 2)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="max_contexts of at least 1, got 0"):
        read_tokens(text_file, "test", cutter, 0)


def test_reading_a_text_shows_a_bar(cutter: ContextCutter, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, str]] = []

    def track(items: Any, description: str, unit: str) -> Any:
        shown.append((description, unit))
        return items

    monkeypatch.setattr("mtsae_lens.data.token_tables.track", track)
    read_tokens(str(text_file), "test", cutter, 2)
    ((description, unit),) = shown
    assert description.startswith("reading ")
    assert description.endswith("land.txt, test")
    assert unit == "document"
