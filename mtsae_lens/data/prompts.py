"""A user's text as tokens of a prompt."""

from __future__ import annotations

from typing import Any

from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.errors import DataError


def check_text(text: Any, what: str = "the text") -> None:
    """Raise `DataError` unless a value is one text that a tokenizer can read.

    Python keeps bytes of a command line that are not UTF-8, and halves of surrogate pairs, as lone surrogates, which no tokenizer reads.

    Args:
        text: what the user gave.
        what: its name in the message.

    Raises:
        DataError: the value is no string, or it holds a lone surrogate.
    """
    if not isinstance(text, str):
        raise DataError(f"{what} must be one string; got a {type(text).__name__}: give several texts one after the other")
    place = next((place for place, character in enumerate(text) if "\ud800" <= character <= "\udfff"), None)
    if place is not None:
        code = ord(text[place])
        byte = f" (the byte 0x{code - 0xDC00:02x}, which is not UTF-8)" if 0xDC80 <= code <= 0xDCFF else ""
        raise DataError(
            f"{what} holds the lone surrogate {text[place]!a}{byte} at character {place + 1}, which is no character; "
            "type it again in UTF-8"
        )


def encode_prompt(cutter: ContextCutter, text: str, what: str = "the text") -> list[int]:
    """Tokenize one text without special tokens, behind the BOS where contexts begin with one.

    Args:
        cutter: the tokenizer, and whether contexts begin with a BOS.
        text: the text of a user.
        what: its name in an error message.

    Returns:
        The token ids; no more than the BOS for an empty text.

    Raises:
        DataError: the text is no string, or no tokenizer can read it.
    """
    check_text(text, what)
    return [*cutter.start_tokens, *cutter.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
