"""Test contexts: packing loses no token, and unpacked contexts hold one document."""

from __future__ import annotations

from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from paragraphs import DOCUMENTS, ids_of

from mtsae_lens.data.contexts import ContextCutter, ContextStream
from mtsae_lens.data.documents import Document, read_documents
from mtsae_lens.errors import DataError

BOS = 0


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
    with pytest.raises(DataError, match="fill a context of 64 tokens, got none; give more text"):
        next(iter(stream))


def test_stream_reads_train_documents_only(tokenizer, text_file: Path) -> None:
    cutter = ContextCutter(tokenizer, 16, packed=False)
    train = [ids for d in read_documents(str(text_file), "train") for ids in [tokens for _, tokens in cutter.cut([d])]]
    stream = ContextStream(partial(read_documents, str(text_file), "train"), cutter)
    assert sorted(islice(iter(stream), len(train))) == sorted(train)


def test_a_long_document_is_cut_as_its_tokens_stand(tokenizer) -> None:
    (ids,) = ids_of(tokenizer, [Document("the ship came home. " * 20_000, "long", "train")])
    for packed in (True, False):
        contexts = list(
            ContextCutter(tokenizer, 64, packed=packed).cut([Document("the ship came home. " * 20_000, "long", "train")])
        )
        assert [token for _, tokens in contexts for token in tokens[1:]] == ids[: len(ids) // 63 * 63]


def test_masked_positions_are_special_tokens_and_the_first(tokenizer) -> None:
    cutter = ContextCutter(tokenizer, 4, prepend_bos=False)
    tokens = torch.tensor([[7, 5, 0, 6], [0, 5, 5, 5]])
    assert cutter.masked(tokens).tolist() == [[True, False, True, False], [True, False, False, False]]
    assert cutter.special_positions(tokens).tolist() == [[False, False, True, False], [True, False, False, False]]
    assert cutter.start_tokens == []
    assert ContextCutter(tokenizer, 4).start_tokens == [tokenizer.bos_token_id]
