"""The loop that the benchmarks share: named cells, of which finished ones are kept, and everything written after each."""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def parser(description: str | None, *, measuring: bool = True) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has; those that measure nothing need no data."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--data", type=Path, required=measuring, help="folder with train.parquet and test.parquet")
    found.add_argument("--only", action="append", default=[], help="run no cells but those whose names contain this")
    found.add_argument("--redo", action="append", default=[], help="run finished cells again whose names contain this")
    return found


def machine() -> str:
    """Return what the numbers were measured on."""
    cpu = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    return f"{platform.machine()}, {device}, torch {torch.__version__}, Python {platform.python_version()}"


def version() -> str:
    """Return the commit of the code that runs, with a plus if it was changed since; nothing outside a clone."""
    if shutil.which("git") is None:
        return ""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=RESULTS, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "-uno", "--", "../../src", "../*.py")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def read(target: Path, command: str) -> dict[str, Any]:
    """Return the results so far."""
    results: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {"cells": {}}
    return results | {"command": command, "machine": machine()}


def run(
    jobs: Mapping[str, Callable[[], dict[str, Any]]],
    results: dict[str, Any],
    arguments: argparse.Namespace,
    *,
    target: Path,
    write: Callable[[dict[str, Any]], None],
) -> None:
    """Run the cells that are wanted and not done; a name given whole means that cell alone.

    Several processes may run different cells into the same file.

    Args:
        jobs: Cells by name, the most important first.
        results: From `read`; the cells are added.
        arguments: With `only` and `redo`.
        target: JSON file written after every cell.
        write: Writes the tables and plots beside it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    code = version()
    for name, job in jobs.items():
        if arguments.only and not any(_means(text, name, jobs) for text in arguments.only):
            continue
        if name in results["cells"] and not any(_means(text, name, jobs) for text in arguments.redo):
            continue
        start = time.perf_counter()
        row = job()
        if target.exists():  # another process may have added cells
            results["cells"] = json.loads(target.read_text())["cells"]
        results["cells"][name] = {**row, "code": code, "machine": machine()}
        partial = target.with_suffix(".partial")
        partial.write_text(json.dumps(results, indent=1) + "\n")
        partial.replace(target)
        write(results)
        print(f"{name} ({time.perf_counter() - start:.0f} s): {_short(results['cells'][name])}", flush=True)


def _means(text: str, name: str, jobs: Mapping[str, Any]) -> bool:
    return text == name or (text in name and text not in jobs)


def _short(cell: Mapping[str, Any]) -> str:
    """Return the plain numbers of a cell."""
    return ", ".join(f"{key} {value:.4g}" for key, value in cell.items() if isinstance(value, (int, float)))
