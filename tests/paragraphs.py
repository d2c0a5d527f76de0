"""Documents of different lengths for tests of contexts and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mtsae_lens.data.documents import Document

DOCUMENTS = [
    Document(f"Paragraph {n}: " + "the river ran over the old stone bridge. " * (n % 5), f"d{n}", "train") for n in range(80)
]


def ids_of(tokenizer: Any, documents: Sequence[Document] = DOCUMENTS) -> list[list[int]]:
    return [tokenizer(d.text, add_special_tokens=False)["input_ids"] for d in documents]
