"""Test the suggestions in the messages of errors."""

from __future__ import annotations

import pytest

from mtsae_lens.errors import nearest

ARCHITECTURES = ("standard", "topk", "jumprelu", "mtsae", "mtsae_transcoder")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mtsea", " Did you mean 'mtsae'?"),
        ("JumpReLU", " Did you mean 'jumprelu'?"),
        ("transcoder", " Did you mean 'mtsae_transcoder'?"),
        ("temporal", " Valid: standard, topk, jumprelu, mtsae, mtsae_transcoder."),  # half of its letters are those of jumprelu
        ("vanilla", " Valid: standard, topk, jumprelu, mtsae, mtsae_transcoder."),
    ],
)
def test_only_a_name_that_is_near_is_suggested(name: str, expected: str) -> None:
    assert nearest(name, ARCHITECTURES) == expected


def test_of_many_names_the_first_are_listed() -> None:
    assert nearest("zzz", [f"name_{i}" for i in range(13)]).endswith(" name_11, ....")
