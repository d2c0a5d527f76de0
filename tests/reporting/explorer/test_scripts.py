"""Test data as JavaScript: any text is preserved, and none can end a script element."""

from __future__ import annotations

import json
import math

from facts_folder import HOSTILE
from hypothesis import given
from hypothesis import strategies as st

from mtsae_lens.reporting.explorer.scripts import round_floats, write_script_json, write_shard_script


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_text_comes_back(words: list[str]) -> None:
    assert json.loads(write_script_json(words)) == words


def test_nothing_ends_a_script_or_a_line() -> None:
    script = write_script_json(HOSTILE)
    assert not set("<>&\u2028\u2029") & set(script)
    assert set("<>&\u2028\u2029") <= set("".join(HOSTILE)), "the words try it"


def test_a_shard_is_one_call() -> None:
    assert write_shard_script("features", 3, ["</script>"]) == 'mtsaeShard("features",3,["\\u003c/script\\u003e"]);\n'


def test_rounding_keeps_digits_and_drops_what_is_no_number() -> None:
    assert round_floats([0.123456, -1234567.0, 2.0, "0.123456", 7], 3) == [0.123, -1230000, 2, "0.123456", 7]
    assert round_floats({"a": [math.nan, (math.inf, None)]}) == {"a": [None, [None, None]]}


@given(st.floats(allow_nan=False, allow_infinity=False, width=32), st.integers(2, 7))
def test_rounding_is_within_half_a_digit(value: float, digits: int) -> None:
    assert abs(round_floats(value, digits) - value) <= abs(value) * 0.5 * 10 ** (1 - digits) * (1 + 1e-9)
