"""Results as named cells in one JSON file: finished ones are kept, and each says where it comes from."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.provenance import HERE, provenance

RESULTS = HERE / "results"
Results = dict[str, Any]  # `cells` by name, and what all of them share
Jobs = Mapping[str, Callable[[], dict[str, Any]]]  # cells by name, the most important first


@dataclass(frozen=True)
class Protocol:
    """What is measured under one name.

    Attributes:
        name: Of the files that the results are in.
        command: That measures everything.
        markdown: From the results to their tables.
        plot: From the results to a drawing in a file; None where there is nothing to draw.
        needed: Options without which nothing can be measured, beside `data`, and what they are: paths.
    """

    name: str
    command: str
    markdown: Callable[[Results], str]
    plot: Callable[[Results, Path], None] | None = None
    needed: Mapping[str, str] = field(default_factory=dict)

    def parser(self, description: str | None) -> argparse.ArgumentParser:
        """Return a parser with the options that every protocol has."""
        found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        add = found.add_argument
        add("--data", type=Path, help="folder with train.parquet and test.parquet, or with the four files of Fashion-MNIST")
        for name, what in self.needed.items():
            add(f"--{name}", type=Path, help=what)
        add("--only", action="append", default=[], help="run no cells but those whose names contain this")
        add("--redo", action="append", default=[], help="run finished cells again whose names contain this")
        add("--target", type=Path, default=RESULTS / f"{self.name}.json", help="where results go; tables beside it")
        add("--part", type=float, default=1.0, help="share of the images that is used, to see whether everything runs")
        add("--tables", action="store_true", help="measure nothing: write the tables anew")
        add("--plot", action="store_true", help="draw the results, too")
        return found

    def parse(self, parser: argparse.ArgumentParser) -> argparse.Namespace:
        """Return the arguments."""
        arguments = parser.parse_args()
        missing = [name for name in ("data", *self.needed) if getattr(arguments, name) is None]
        if missing and not arguments.tables:
            parser.error(f"--{missing[0]} is needed to measure; --tables alone writes the tables anew")
        if arguments.tables and not arguments.target.exists():
            parser.error(f"there are no results {str(arguments.target)!r} to write tables of")
        if arguments.part != 1 and arguments.target.resolve().parent == RESULTS:
            parser.error("--part gives other numbers than the protocol; give another --target, too")
        return arguments

    def main(self, description: str | None, jobs: Callable[[argparse.Namespace], Jobs]) -> None:
        """Measure the cells that are not there yet."""
        arguments = self.parse(self.parser(description))
        self.run(arguments, lambda cells: jobs(arguments))

    def read(self, target: Path) -> Results:
        """Return the results so far."""
        found: Results = json.loads(target.read_text()) if target.exists() else {"cells": {}}
        return {"command": self.command} | found

    def write(self, results: Results, arguments: argparse.Namespace) -> None:
        """Write the tables, and the drawing where it is asked for."""
        arguments.target.with_suffix(".md").write_text(self.markdown(results))
        if self.plot is not None and arguments.plot:
            self.plot(results, arguments.target.with_suffix(".svg"))

    def run(
        self, arguments: argparse.Namespace, jobs: Callable[[dict[str, Any]], Jobs], about: Mapping[str, Any] | None = None
    ) -> None:
        """Measure the cells that are wanted and not there; a name given whole means that cell alone.

        Several processes may put different cells into the same file.

        Args:
            arguments: From `parse`.
            jobs: From the cells so far, which grow as they are measured, to what can be measured.
            about: What all cells share, kept beside them.
        """
        results = self.read(arguments.target)
        if arguments.tables:
            self.write(results, arguments)
            return
        results |= about or {}
        provenance()  # of the code as it is now, in case it changes while this runs
        arguments.target.parent.mkdir(parents=True, exist_ok=True)
        cells, todo = results["cells"], jobs(results["cells"])
        for name, job in todo.items():
            if arguments.only and not any(_means(text, name, todo) for text in arguments.only):
                continue
            if name in cells and not any(_means(text, name, todo) for text in arguments.redo):
                continue
            start = time.perf_counter()
            try:
                row = job()
            except KeyboardInterrupt:
                print("interrupted; finished pieces are kept, the same command goes on")
                raise SystemExit(130) from None
            if arguments.target.exists():  # another process may have added cells
                cells |= json.loads(arguments.target.read_text())["cells"]
            cells[name] = {**row, **provenance()}
            partial = arguments.target.with_suffix(".partial")
            partial.write_text(json.dumps(results, indent=1) + "\n")
            partial.replace(arguments.target)
            self.write(results, arguments)
            print(f"{name} ({time.perf_counter() - start:.0f} s): {_numbers(cells[name])}", flush=True)


def _means(text: str, name: str, jobs: Jobs) -> bool:
    return text == name or (text in name and text not in jobs)


def _numbers(cell: Mapping[str, Any]) -> str:
    """Return the plain numbers of a cell."""
    return ", ".join(f"{key} {value:.4g}" for key, value in cell.items() if isinstance(value, (int, float)))
