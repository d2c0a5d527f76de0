"""A text file becomes documents."""

from __future__ import annotations

from mtsae_lens.data.text_files import cut_into_documents


def test_cut_into_documents_keeps_blank_lines_inside() -> None:
    assert list(cut_into_documents("a\n\nb\n")) == ["a\n\nb"]
    assert list(cut_into_documents("\n \n\n")) == []
