"""Test the texts behind the embedded model: documents, splits, and the table in the package."""

from __future__ import annotations

import lzma
from collections import Counter
from pathlib import Path

import pytest

from mtsae_lens.data.documents import SPLITS
from mtsae_lens.data.documents import read_documents as read_shipped
from tools.embedded.sources import DOMAINS, FORGET_DOMAIN, MIN_HELD_OUT_DOCUMENTS, read_documents


@pytest.fixture
def texts_dir(tmp_path: Path) -> Path:
    lines = [f"Sentence {n} of a long book about nothing in particular.{'' if n % 9 else chr(10)}" for n in range(12_000)]
    lines[77] = "See http://example.org for sentence 77."
    for domain in ("kjv", "austen"):
        (tmp_path / f"{domain}.txt.xz").write_bytes(lzma.compress("\n".join(lines).encode()))
    return tmp_path


def test_documents_part_into_splits_and_keep_all_text_but_addresses(texts_dir: Path) -> None:
    documents = read_documents(texts_dir, "kjv")
    assert [d.number for d in documents] == list(range(len(documents)))
    counts = Counter(d.split for d in documents)
    assert set(counts) == set(SPLITS)
    assert {counts[split] for split in SPLITS[1:]} == {MIN_HELD_OUT_DOCUMENTS}
    text = "\n".join(d.text for d in documents)
    assert "://" not in text
    assert text.count("Sentence") == 11_999
    assert len({d.text for d in documents}) == len(documents)  # so that no text is on both sides


def test_the_split_depends_on_the_domain_alone(texts_dir: Path) -> None:
    first, again, other = (read_documents(texts_dir, domain) for domain in ("kjv", "kjv", "austen"))
    assert first == again
    assert [d.split for d in first] != [d.split for d in other]
    assert [d.text for d in first] == [d.text for d in other]


def test_a_missing_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"milton\.txt\.xz"):
        read_documents(tmp_path, "milton")


def test_the_shipped_texts_have_every_domain_and_disjoint_splits() -> None:
    documents = list(read_shipped("embedded"))
    domains = {d.name.split("/")[0] for d in documents}
    assert set(DOMAINS) | {FORGET_DOMAIN} <= domains
    assert len({d.name for d in documents}) == len(documents)
    for domain in DOMAINS:
        counts = Counter(d.split for d in documents if d.name.startswith(f"{domain}/"))
        assert min(counts[split] for split in SPLITS) >= MIN_HELD_OUT_DOCUMENTS
    of_split = {split: {d.text for d in documents if d.split == split} for split in SPLITS}
    for held_out in SPLITS[1:]:
        assert not of_split["train"] & of_split[held_out]
