"""Tokenize a user's text as a prompt."""

from __future__ import annotations

from typing import Any

from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.errors import DataError


def check_text(text: Any, what: str = "the text") -> None:
    """Check that a value is one text that a tokenizer can read.

    Python represents bytes of the command line that are not UTF-8, and halves of surrogate pairs, as lone surrogates, which no
    tokenizer reads.

    Args:
        text: the user's value.
        what: name of the value in the error message.

    Raises:
        DataError: the value is not a string, or it contains a lone surrogate.
    """
    if not isinstance(text, str):
        raise DataError(
            f"expected {what} to be one string, got a {type(text).__name__}; give several texts one after the other"
        )
    place = next((place for place, character in enumerate(text) if "\ud800" <= character <= "\udfff"), None)
    if place is not None:
        code = ord(text[place])
        byte = f" (the byte 0x{code - 0xDC00:02x}, which is not UTF-8)" if 0xDC80 <= code <= 0xDCFF else ""
        raise DataError(
            f"expected {what} to be valid Unicode, got the lone surrogate {text[place]!a}{byte} at character {place + 1}; "
            "type it again in UTF-8"
        )


def encode_prompt(cutter: ContextCutter, text: str, what: str = "the text") -> list[int]:
    """Tokenize one text without special tokens, and prepend a BOS token if contexts begin with one.

    Args:
        cutter: the tokenizer, and whether contexts begin with a BOS token.
        text: the user's text.
        what: name of the text in an error message.

    Returns:
        The token ids; for an empty text, at most the BOS token.

    Raises:
        DataError: see `check_text`.
    """
    check_text(text, what)
    return [*cutter.start_tokens, *cutter.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
