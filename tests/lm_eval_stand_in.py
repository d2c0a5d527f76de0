"""A stand-in for the part of lm-evaluation-harness 0.4.13 that its model class meets, for environments in which it is not installed.

It has the names, arguments and results of the harness, and no task. `tests/interop/harness.py` runs the real one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest


class CacheHook:
    """The harness's cache when `--use_cache` is not given."""

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        assert attr in ("loglikelihood", "loglikelihood_rolling", "generate_until")
        assert isinstance(req, tuple)


class TemplateLM:
    """What the harness's class of this name does with contexts and continuations."""

    tokenizer: Any = None

    def __init__(self) -> None:
        self.cache_hook = CacheHook()

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Any:
        pairs = dict(argument.split("=", 1) for argument in arg_string.split(","))
        return cls(**pairs, **{name: value for name, value in (additional_config or {}).items() if value is not None})

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        encoded = []
        for context, continuation in (request.args for request in requests):
            if context == "":
                after = self.tok_encode(continuation, add_special_tokens=False)  # type: ignore[attr-defined]
                prefix = self.prefix_token_id  # type: ignore[attr-defined]
                before, after = ([prefix], after) if prefix != after[0] else (after[:1], after[1:])
            else:
                before, after = self._encode_pair(context, continuation)
            encoded.append(((context, continuation), before, after))
        return self._loglikelihood_tokens(encoded, disable_tqdm=disable_tqdm)  # type: ignore[attr-defined]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        n_spaces = len(context) - len(context.rstrip())
        if n_spaces:
            context, continuation = context[:-n_spaces], context[-n_spaces:] + continuation
        whole, before = self.tok_encode(context + continuation), self.tok_encode(context)  # type: ignore[attr-defined]
        return before, whole[len(before) :]


def get_rolling_token_windows(
    token_list: list[int], prefix_token: int, max_seq_len: int, context_len: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Cut as the harness does: every token is predicted once; the last window is moved back so that it is full."""
    assert context_len == 1
    if token_list:
        first = min(max_seq_len, len(token_list))
        yield [prefix_token, *token_list[: first - 1]], token_list[:first]
        for start in range(first, len(token_list), max_seq_len):
            end = min(start + max_seq_len, len(token_list))
            yield token_list[end - max_seq_len - 1 : end - 1], token_list[start:end]


def make_disjoint_window(pair: tuple[list[int], list[int]]) -> tuple[list[int], list[int]]:
    context, predicted = pair
    return context[: len(context) - (len(predicted) - 1)], predicted


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the stand-in in the place of the package for one test."""
    models: dict[str, type[Any]] = {}

    def register_model(name: str) -> Any:
        return lambda cls: models.setdefault(name, cls)

    parts: dict[str, dict[str, Any]] = {
        "lm_eval": {},
        "lm_eval.api": {},
        "lm_eval.api.model": {"TemplateLM": TemplateLM},
        "lm_eval.api.registry": {"register_model": register_model, "get_model": models.__getitem__},
        "lm_eval.utils": {
            "get_rolling_token_windows": get_rolling_token_windows,
            "make_disjoint_window": make_disjoint_window,
        },
        "lm_eval.__main__": {"cli_evaluate": lambda: print("the harness was called with", *sys.argv[1:])},
    }
    for name, members in parts.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
