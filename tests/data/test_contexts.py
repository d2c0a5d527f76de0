"""Contexts: packing loses nothing, unpacked contexts hold one document, tables hold one split."""

from __future__ import annotations

from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mtsae_lens.data.contexts import ContextCutter, ContextStream, TokenTable, read_tokens
from mtsae_lens.data.documents import Document, read_documents
from mtsae_lens.errors import DataError

DOCUMENTS = [
    Document(f"Paragraph {n}: " + "the river ran over the old stone bridge. " * (n % 5), f"d{n}", "train") for n in range(80)
]
BOS = 0


def ids_of(tokenizer, documents=DOCUMENTS) -> list[list[int]]:
    return [tokenizer(d.text, add_special_tokens=False)["input_ids"] for d in documents]


@pytest.mark.parametrize("prepend_bos", [True, False])
def test_packed_contexts_lose_no_token_but_the_last_incomplete_context(tokenizer, prepend_bos: bool) -> None:
    cutter = ContextCutter(tokenizer, 16, prepend_bos)
    contexts = list(cutter.cut(DOCUMENTS))
    assert all(len(tokens) == 16 for _, tokens in contexts)
    if prepend_bos:
        assert all(tokens[0] == BOS for _, tokens in contexts)
    got = [token for _, tokens in contexts for token in tokens[prepend_bos:] if token != BOS]
    everything = [token for ids in ids_of(tokenizer) for token in ids]
    assert got == everything[: len(got)]
    assert len(everything) - len(got) < 16


def test_packed_documents_are_separated_inside_a_context(tokenizer) -> None:
    cutter = ContextCutter(tokenizer, 16)
    rows = [tokens[1:] for _, tokens in cutter.cut(DOCUMENTS)]
    text, ends, place = [t for row in rows for t in row], set(), 0
    for ids in ids_of(tokenizer):  # where separators must stand: between documents, except where a context ends with one
        place += len(ids)
        if place % 15:
            ends.add(place)
            place += 1
    assert {i for i, token in enumerate(text) if token == BOS} == {e for e in ends if e < len(text)}


def test_contexts_are_named_after_the_document_they_begin_in(tokenizer) -> None:
    ids = dict(zip((d.name for d in DOCUMENTS), ids_of(tokenizer), strict=True))
    for packed in (True, False):
        for name, tokens in ContextCutter(tokenizer, 8, packed=packed).cut(DOCUMENTS):
            body = tokens[1:] if tokens[1] != BOS else tokens[2:]
            start = body[: body.index(BOS)] if BOS in body else body
            inside = ids[name]
            assert any(inside[i : i + len(start)] == start for i in range(len(inside)))


def test_unpacked_contexts_hold_one_document(tokenizer) -> None:
    contexts = list(ContextCutter(tokenizer, 8, packed=False).cut(DOCUMENTS))
    assert all(BOS not in tokens[1:] for _, tokens in contexts)
    expected = [ids[i : i + 7] for ids in ids_of(tokenizer) for i in range(0, len(ids) - 6, 7)]
    assert [tokens[1:] for _, tokens in contexts] == expected


def test_special_positions(tokenizer) -> None:
    assert ContextCutter(tokenizer, 8).special_positions(torch.tensor([[0, 5, 0, 7]])).tolist() == [[True, False, True, False]]


def test_a_tokenizer_without_bos_needs_prepend_bos_false() -> None:
    with pytest.raises(DataError, match="--no-prepend-bos"):
        ContextCutter(SimpleNamespace(bos_token_id=None), 8)  # type: ignore[arg-type]


def test_stream_repeats_the_documents_in_a_new_order(tokenizer) -> None:
    cutter = ContextCutter(tokenizer, 8, packed=False)
    n = len(list(cutter.cut(DOCUMENTS)))
    first, second = (list(islice(iter(ContextStream(lambda: DOCUMENTS, cutter, seed)), 2 * n)) for seed in (0, 0))
    assert first == second
    assert sorted(first[:n]) == sorted(first[n:])
    assert first[:n] != first[n:]
    assert first != list(islice(iter(ContextStream(lambda: DOCUMENTS, cutter, 1)), 2 * n))


def test_stream_of_too_little_text_is_refused(tokenizer) -> None:
    stream = ContextStream(lambda: DOCUMENTS[:1], ContextCutter(tokenizer, 64))
    with pytest.raises(DataError, match="no context of 64 tokens; give more text or a smaller context size"):
        next(iter(stream))


def test_stream_reads_train_documents_only(tokenizer, text_file: Path) -> None:
    cutter = ContextCutter(tokenizer, 16, packed=False)
    train = [ids for d in read_documents(str(text_file), "train") for ids in [tokens for _, tokens in cutter.cut([d])]]
    stream = ContextStream(partial(read_documents, str(text_file), "train"), cutter)
    assert sorted(islice(iter(stream), len(train))) == sorted(train)


def test_read_tokens_keeps_to_its_split_and_finds_all_of_it(cutter, text_file: Path) -> None:
    tables = {split: read_tokens(str(text_file), split, cutter, 1000) for split in ("train", "select", "tune", "test")}
    for split, table in tables.items():
        assert set(table.documents) == {d.name for d in read_documents(str(text_file), split)}
        unpacked = ContextCutter(cutter.tokenizer, cutter.context_size, packed=False)
        everything = [tokens for _, tokens in unpacked.cut(read_documents(str(text_file), split))]
        assert sorted(table.tokens.tolist()) == sorted(everything)
        assert table.tokens.shape == (len(table), cutter.context_size)
        assert not cutter.special_positions(table.tokens)[:, 1:].any()


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
    with pytest.raises(DataError, match="split 'test' has 0 documents"):
        read_tokens(str(path), "test", cutter, 2)


def test_table_batches_lose_no_row() -> None:
    table = TokenTable("c", torch.arange(14).view(7, 2), tuple("abcdefg"))
    assert [len(batch) for batch in table.batches(3)] == [3, 3, 1]
    assert torch.equal(torch.cat(list(table.batches(3))), table.tokens)


def test_a_source_may_be_a_path_but_no_list(cutter: ContextCutter, text_file: Path) -> None:
    assert torch.equal(read_tokens(text_file, "test", cutter, 2).tokens, read_tokens(str(text_file), "test", cutter, 2).tokens)
    for texts in (["one", "two"], {"text": ["one"]}):
        with pytest.raises(DataError, match=rf"got a {type(texts).__name__}\. Texts in memory go into a file first"):
            read_tokens(texts, "test", cutter, 2)  # type: ignore[arg-type]


def test_a_split_that_does_not_exist(cutter: ContextCutter, text_file: Path) -> None:
    with pytest.raises(DataError, match="train, select, tune, test, or None for all; got 'validation'"):
        read_tokens(text_file, "validation", cutter, 2)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="max_contexts must be at least 1; got 0"):
        read_tokens(text_file, "test", cutter, 0)
