"""What the commands print: progress while they work, the report at the end."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from spectrim.core.progress import Progress
from spectrim.core.records import Report
from spectrim.report import lines, table

out = Console(emoji=False)  # names with colons stay as they are
err = Console(stderr=True, emoji=False)
LATE = 30.0  # seconds without a line in a log before a stage that goes on is told of


def show(report: Report, folder: str, as_json: bool) -> None:
    """Print a report, and what was written where."""
    if as_json:
        sys.stdout.write(report.to_json())
        return
    out.print(table(report))
    for line in lines(report):
        out.print(line, soft_wrap=True, highlight=False, markup=False)
    names = ", ".join(sorted(path.name for path in Path(folder).iterdir()))
    out.print(f"written to {folder}: {names}", soft_wrap=True, highlight=False)


@contextlib.contextmanager
def progress(quiet: bool) -> Iterator[Progress]:
    """Show a bar per stage on a terminal, a line per finished stage in a log, and nothing beside JSON."""
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

        yield advance
