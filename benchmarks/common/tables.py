"""Markdown tables of cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from common.provenance import FIELDS

Cell = Mapping[str, Any]


def table(columns: str, rows: Iterable[Sequence[Any]], title: str = "") -> list[str]:
    """Return the lines of a table.

    Args:
        columns: Their names, with bars between.
        rows: Texts of each.
        title: Put above it as a heading.
    """
    lines = [f"## {title}", ""] if title else []
    lines += [f"| {columns} |", "|" + "---|" * (columns.count("|") + 1)]
    return [*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows), ""]


def measured(cell: Cell) -> dict[str, Any]:
    """Return a cell without what says where it comes from."""
    return {name: value for name, value in cell.items() if name not in FIELDS}


def rows_of(cell: Cell, digits: int) -> tuple[str, list[list[str]]]:
    """Return the columns and rows of a cell that is a table itself: name to numbers by column."""
    rows: dict[str, dict[str, float]] = measured(cell)
    columns = list(next(iter(rows.values())))
    return " | ".join(columns), [[name, *(f"{row[column]:.{digits}g}" for column in columns)] for name, row in rows.items()]


def plus_minus(cell: Cell | None, key: str = "drop", error: str = "standard error", sign: str = "") -> str:
    """Return a number of a cell with its error, or a dash where there is none."""
    return f"{cell[key]:{sign}.2f} +- {cell[error]:.2f}" if cell and key in cell else "-"


def head(title: str, results: Mapping[str, Any]) -> list[str]:
    """Return the title, the command that measures everything, and the machines that cells were measured on."""
    machines = {cell.get("machine", results.get("machine", "")) for cell in results["cells"].values()} - {""}
    return [f"# {title}", "", f"`{results['command']}` on {'; '.join(sorted(machines))}", ""]
