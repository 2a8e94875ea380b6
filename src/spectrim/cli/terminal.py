"""What the commands print: progress while they work, the report at the end."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from spectrim.core.progress import Progress
from spectrim.core.records import Report
from spectrim.integrations.tracking import check, track
from spectrim.report import lines, table
from spectrim.report.text import WIDTH

out = Console(emoji=False)  # names with colons stay as they are
err = Console(stderr=True, emoji=False)
WIDEST = 1000  # columns of a table in a pipe
LATE = 30.0  # seconds without a line in a log before a stage that goes on is told of


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Output:
    """What is printed.

    Attributes:
        as_json: Print the result as one JSON document; progress goes to standard error.
        quiet: Print no progress; of what was written to a folder or files only where.
        verbose: Print what the library logs, with times, instead of bars.
    """

    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False
    quiet: Annotated[bool, Parameter(name=("--quiet", "-q"), negative=())] = False
    verbose: Annotated[bool, Parameter(name=("--verbose", "-v"), negative=())] = False


Track = Annotated[Sequence[str], Parameter(name="--track", negative=())]


def say(line: str) -> None:
    """Print a line: as one in a pipe, between words on as many as it takes on a terminal."""
    out.print(line, soft_wrap=not out.is_terminal, highlight=False, markup=False)


def lay(table: Table) -> None:
    """Print a table: as wide as the terminal, or as COLUMNS says; in a pipe as wide as it is, where nothing is folded."""
    if out.is_terminal or "COLUMNS" in os.environ:
        return out.print(table)
    wide = Console(width=WIDEST, emoji=False)
    wide.print(table, width=max(wide.measure(table).maximum, WIDTH))


def check_trackers(sinks: Sequence[str]) -> None:
    """Raise an error, before the long work, if a tracker cannot be used."""
    for sink in sinks:
        check(sink)


def show(report: Report, folder: str, output: Output, sinks: Sequence[str] = ()) -> str | None:
    """Print a report, and what was written where; or return the report as JSON. Trackers get it first."""
    for sink in sinks:
        try:
            track(report, sink, folder)
        except (ValueError, ImportError) as error:  # the result is saved, and is not lost for it
            err.print(f"warning  {error}", soft_wrap=True, highlight=False, markup=False)
    if output.as_json:
        return report.to_json()
    if output.quiet:
        return f"{folder}\n"
    lay(table(report))
    for line in lines(report):
        say(line)
    names = ", ".join(sorted(path.name for path in Path(folder).iterdir()))
    say(f"written to {folder}: {names}")
    return None


@contextlib.contextmanager
def progress(output: Output) -> Iterator[Progress]:
    """Show a bar per stage on a terminal, a line per finished stage in a log, or what the library logs; on standard error."""
    quiet = output.quiet or output.verbose
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Bars(*columns, console=err, transient=True, disable=quiet or not err.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}
        shares: dict[str, float] = {}
        printed, last = time.monotonic(), ""

        def advance(stage: str, share: float) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=1.0)
            bars.update(tasks[stage], completed=share)
            finished, shares[stage] = share == 1.0 != shares.get(stage), share
            nonlocal printed, last
            late = share > 0 and time.monotonic() - printed > LATE
            if (late or (finished and stage != last)) and not quiet and not err.is_terminal:  # no line twice in a row
                printed, last = time.monotonic(), stage if finished else ""
                state = "done" if finished else f"{100 * share:.0f} %"
                err.print(f"{datetime.now():%H:%M:%S} {stage} {state}", highlight=False)

        with logging_to(err) if output.verbose else contextlib.nullcontext():
            yield advance


@contextlib.contextmanager
def logging_to(console: Console) -> Iterator[None]:
    """Print what the library logs."""
    logger, handler = logging.getLogger("spectrim"), logging.StreamHandler(console.file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
