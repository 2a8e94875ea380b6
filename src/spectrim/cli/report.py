"""`spectrim report`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from spectrim.cli.options import OutFile
from spectrim.cli.runs import check_file, report_of
from spectrim.cli.terminal import Output, progress, say
from spectrim.core.records import Report
from spectrim.report import compare, page

PAGE = "report.html"


def report(
    run: str,
    /,
    *others: str,
    out_file: OutFile = None,
    output: Output = Output(),
) -> str | None:
    """Make the page of a run again from its report.json; or with several runs, a page that compares them.

    Parameters
    ----------
    run
        Folder that demo, compress or train wrote.
    others
        More of them: then the runs are compared.
    out_file
        HTML file to write; by default report.html in the folder of the one run, which is replaced, or comparison.html here.
    output
        What is printed.
    """
    reports = _read([run, *others])
    target = Path(out_file or ("comparison.html" if others else Path(run) / PAGE))
    if others or out_file is not None:
        check_file(str(target), (".html",))
    with progress(output) as advance:
        advance("page", 0.0)
        target.write_text(compare(reports) if others else page(*reports.values()))
        advance("page", 1.0)
    if not others and out_file is None:
        Path(run, f"{PAGE}.txt").unlink(missing_ok=True)  # it said that there is no page
    if output.as_json:
        return json.dumps({"page": str(target)}) + "\n"
    say(str(target) if output.quiet else f"written: {target}")
    return None


def _read(runs: Sequence[str]) -> Mapping[str, Report]:
    """Return the reports of folders by their names, with the folders that these are in where two have one name.

    Raises:
        ValueError: If one is none, or is given twice.
    """
    places = [Path(run).resolve() for run in runs]
    twice = next((run for run, place in zip(runs, places, strict=True) if places.count(place) > 1), None)
    if twice is not None:
        raise ValueError(f"the run {twice!r} is given twice; name different folders")
    names = [place.name for place in places]
    names = names if len(set(names)) == len(names) else list(map(str, places))
    return {name: report_of(run) for name, run in zip(names, runs, strict=True)}
