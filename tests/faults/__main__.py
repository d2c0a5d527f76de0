"""Run the trials as `python -m faults`, with `tests/` on the path."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from faults.families import FAMILIES, select
from faults.report import JSON_FILE, TABLE_FILE, failures, fill_page, summary, table, write_report
from faults.runner import Family, Record, run_family
from faults.workplace import Workplace, prepare_process

_SHOWN = 40


def main(
    seed: Annotated[int, typer.Option(help="Decides every trial.")] = 1,
    only: Annotated[list[str] | None, typer.Option(help="Families whose name begins so; may be repeated.")] = None,
    trial: Annotated[int | None, typer.Option(help="This one trial of each, to repeat a failure.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few trials of each family.")] = False,
    scale: Annotated[float, typer.Option(help="So many times the usual number of trials.")] = 1.0,
    hours: Annotated[float | None, typer.Option(help="Begin no further family after so many hours.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the counts.")] = Path("runs/faults"),
    page: Annotated[
        Path | None, typer.Option(help="A page whose table of counts is filled from --out; nothing is run.")
    ] = None,
    names: Annotated[bool, typer.Option("--names", help="Print the families and their numbers of trials, and exit.")] = False,
) -> None:
    """Inject faults and give bad input; exit code 1 where a promise was broken."""
    families = select(only or [])
    if not families:
        raise typer.BadParameter(
            f"no such family; there are {', '.join(family.name for family in FAMILIES)}", param_hint="--only"
        )
    if page is not None:
        fill_page(page, json.loads((out / JSON_FILE).read_text()))
        raise typer.Exit
    if names:
        for family in families:
            typer.echo(f"{family.name}: {family.count} ({family.quick} quick)")
        raise typer.Exit
    started, done, records = time.monotonic(), [], []
    prepare_process()
    with tempfile.TemporaryDirectory(prefix="mtsae-faults-") as folder:
        workplace = Workplace(Path(folder))
        for family in families:
            numbers = _numbers(family, trial, quick=quick, scale=scale)
            if not numbers or (hours is not None and time.monotonic() - started > 3600 * hours):
                continue
            found: list[Record] = run_family(family, workplace, seed, numbers)
            done.append(family)
            records += found
            for line in failures(found, _SHOWN):
                typer.echo(line)
            write_report(out, summary(done, records, seed, time.monotonic() - started))
    made = summary(done, records, seed, time.monotonic() - started)
    typer.echo(table(made))
    typer.echo(f"counts: {out / JSON_FILE}, {out / TABLE_FILE}")
    raise typer.Exit(code=1 if made["failures"] else 0)


def _numbers(family: Family, trial: int | None, *, quick: bool, scale: float) -> list[int]:
    if trial is not None:
        return [trial]
    return list(range(round(scale * (family.quick if quick else family.count))))


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
