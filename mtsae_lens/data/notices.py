"""Print one-line warnings about the text that is read, each of them once, on stderr."""

from __future__ import annotations

import logging

_log = logging.getLogger("mtsae_lens")
_told: set[str] = set()


def tell_once(message: str, *, about: str | None = None) -> None:
    """Log a warning with the logger `mtsae_lens`, which prints it to stderr unless the program has set up logging differently.

    Args:
        message: one line.
        about: key of the message; a second message with the same key is not printed. By default, the message itself.
    """
    if (about or message) not in _told:
        _told.add(about or message)
        _log.warning("warning: %s", "".join(c if c.isprintable() else repr(c)[1:-1] for c in message))
