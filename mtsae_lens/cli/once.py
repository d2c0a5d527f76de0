"""A command that takes each option once: of two values the last would win, and nobody would know."""

from __future__ import annotations

from collections import Counter

import click
from typer.core import TyperCommand


class OnceCommand(TyperCommand):
    """A command of typer that refuses an option given twice, unless it takes several values."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Count the options before they are parsed for good.

        Raises:
            click.UsageError: an option is given twice.
        """
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for parameter, n in Counter(order).items():
            if n > 1 and isinstance(parameter, click.Option) and not _may_repeat(parameter):
                raise click.UsageError(f"{max(parameter.opts, key=len)} is given {n} times; give it once", ctx)
        return super().parse_args(ctx, args)


def _may_repeat(option: click.Option) -> bool:
    """Whether a second time adds a value, or says the same again as `--quick --quick` does."""
    return option.multiple or (option.is_flag and not option.secondary_opts)
