"""Test that long text is cut into documents."""

from __future__ import annotations

import pytest

from mtsae_lens.data.text_cutting import DOCUMENT_CHARS, cut_into_documents


def test_cut_into_documents_keeps_blank_lines_inside() -> None:
    assert list(cut_into_documents("a\n\nb\n")) == ["a\n\nb"]
    assert list(cut_into_documents("\n \n\n")) == []


@pytest.mark.parametrize("text", ["the ship came home. " * 5_000, "\u6d77" * 50_000, "a" * 2_999 + " " + "b" * 90_000])
def test_one_long_line_loses_nothing(text: str) -> None:
    documents = list(cut_into_documents(text))
    assert "".join("".join(documents).split()) == "".join(text.split())
    assert all(len(document) <= 2 * DOCUMENT_CHARS + 1 for document in documents)
    assert len(documents) >= len(text) // (3 * DOCUMENT_CHARS)
