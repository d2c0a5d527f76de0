"""Report the counts of a run as JSON and as a table in Markdown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from faults.findings import BAD, GOOD
from faults.runner import Family, Record

MARKS = ("<!-- counts: begin -->", "<!-- counts: end -->")
JSON_FILE, TABLE_FILE = "faults.json", "faults.md"


def summary(families: Sequence[Family], records: Sequence[Record], seed: int, seconds: float) -> dict[str, Any]:
    """Return as JSON what was tried, how often, and the results."""
    rows = []
    for family in families:
        own = [record for record in records if record.family == family.name]
        outcomes = Counter(record.finding.outcome for record in own)
        rows.append(
            {
                "family": family.name,
                "promise": family.promise,
                "method": family.method,
                "trials": len(own),
                "faults": sum(record.finding.n_faults for record in own) if family.injects else 0,
                "inputs": 0 if family.injects else len(own),
                "outcomes": {name: outcomes[name] for name in (*GOOD, *BAD) if outcomes[name]},
                "failures": sum(not record.finding.ok for record in own),
            }
        )
    return {
        "seed": seed,
        "seconds": round(seconds),
        "faults": sum(row["faults"] for row in rows),
        "inputs": sum(row["inputs"] for row in rows),
        "failures": sum(row["failures"] for row in rows),
        "families": rows,
        "failed": [asdict(record) for record in records if not record.finding.ok],
        "outcomes": GOOD | BAD,
    }


def table(made: dict[str, Any]) -> str:
    """Return the summary in Markdown; a promise that several families test is listed with the first of them."""
    lines = ["| promise | family and how it is tested | trials | outcome |", "|---|---|---|---|"]
    told: set[str] = set()
    for row in made["families"]:
        outcomes = ", ".join(f"{n:,} {f'**{name}**' if name in BAD else name}" for name, n in row["outcomes"].items())
        trials = f"{row['trials']:,}" + (f" ({row['faults']:,} faults)" if row["faults"] > row["trials"] else "")
        promise = "" if row["promise"] in told else row["promise"]
        told.add(row["promise"])
        lines.append(f"| {promise} | `{row['family']}`: {row['method']} | {trials} | {outcomes} |")
    broken = f"{made['failures']:,} of the trials broke a promise" if made["failures"] else "no promise was broken"
    total = f"Seed {made['seed']}: {made['faults']:,} injected faults and {made['inputs']:,} bad inputs; {broken}."
    return "\n".join([*lines, "", total, ""])


def failures(records: Sequence[Record], most: int | None = None) -> list[str]:
    """One line for each trial that broke a promise: what repeats it, what was done, what was seen."""
    failed = [record for record in records if not record.finding.ok]
    lines = [
        f"--only {record.family} --seed {record.seed} --trial {record.trial}: {record.finding.outcome}: {record.finding.what}: "
        f"{record.finding.detail}"
        for record in failed[:most]
    ]
    return [line.encode("unicode_escape").decode() for line in lines]


def write_report(out: Path, made: dict[str, Any]) -> None:
    """Write both files."""
    out.mkdir(parents=True, exist_ok=True)
    (out / JSON_FILE).write_text(json.dumps(made, indent=1) + "\n")
    (out / TABLE_FILE).write_text(table(made))


def fill_page(page: Path, made: dict[str, Any]) -> None:
    """Put the table into a page, between its two marks."""
    before, _, rest = page.read_text().partition(MARKS[0])
    _, found, after = rest.partition(MARKS[1])
    if not found:
        raise ValueError(f"{page} has no {MARKS[0]} ... {MARKS[1]}")
    page.write_text(f"{before}{MARKS[0]}\n\n{table(made)}\n{MARKS[1]}{after}")
