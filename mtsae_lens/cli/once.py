"""A command that says so when an option is given twice: the last value wins, as in every shell, but not without a word."""

from __future__ import annotations

from collections import Counter
from typing import Any

from typer.core import TyperCommand, TyperOption

from mtsae_lens.cli.output import say_aside


class OnceCommand(TyperCommand):
    """A command of typer that warns of an option given twice, unless it takes several values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Count the options before they are parsed for good."""
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for parameter, n in Counter(order).items():
            if n > 1 and isinstance(parameter, TyperOption) and not _may_repeat(parameter):
                say_aside(f"warning: {max(parameter.opts, key=len)} is given {n} times; the last value is used")
        return super().parse_args(ctx, args)


def _may_repeat(option: TyperOption) -> bool:
    """Whether a second time adds a value, or says the same again as `--quick --quick` does."""
    return option.multiple or (option.is_flag and not option.secondary_opts)
