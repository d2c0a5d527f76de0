"""Test that names from users appear unchanged in Markdown."""

from __future__ import annotations

import pytest

from mtsae_lens.markdown import code_span, escape_markdown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("blocks.3.hook_resid_post", "blocks.3.hook_resid_post"),
        ("<img src=x onerror=alert(1)>.txt", "&lt;img src=x onerror=alert(1)&gt;.txt"),
        ("a&b", "a&amp;b"),
        ("![x](http://y)", r"\!\[x\](http://y)"),
        ("a|b*c`d", r"a\|b\*c\`d"),
        ("_x_", r"\_x\_"),
        ("a\n# b\x1b[2J", r"a\\n# b\\x1b\[2J"),
    ],
)
def test_nothing_in_a_name_is_markup(text: str, shown: str) -> None:
    assert escape_markdown(text) == shown


def test_code_spans_cannot_be_left() -> None:
    assert code_span("a") == "`a`"
    assert code_span("a`b``c") == "```a`b``c```"
    assert code_span("`x`\n<b>") == r"`` `x`\n<b> ``"
