"""What the results of other tools are told in: tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.tables import Cell, head, plus_minus, table

OURS, PRUNING = "spectrim", "Torch-Pruning"
TUNED = " | fine-tuned"


def markdown(results: dict[str, Any]) -> str:
    """Return all results as tables."""
    cells = results["cells"]
    pairs = {name: cell for name, cell in cells.items() if "tried" in cell}
    runtimes = {f"{cell['runtime']['target']} {cell['runtime']['version']}" for cell in cells.values() if "runtime" in cell}
    lines = head("Other tools, run side by side", results)
    lines += [
        f"Times on {', '.join(sorted(runtimes))}, one thread, batch 1, process CPU time, of the original's; others ran "
        "on the machine. Drop of top-1 in points on 10,000 test images, paired standard error. Gain: by how much spectrim's is "
        "better, paired.",
        "",
    ]
    columns = (
        "network, budget | top-1 before | time: spectrim | time: Torch-Pruning | drop: spectrim | drop: Torch-Pruning | gain"
    )
    lines += table(columns, [_pair(name, cell) for name, cell in pairs.items()], "Torch-Pruning at equal time, nothing trained")
    tuned = {name: cell for name, cell in cells.items() if name.endswith(TUNED)}
    columns = "network, budget | steps | drop: spectrim | drop: Torch-Pruning | gain | rate: spectrim | rate: Torch-Pruning"
    lines += table(columns, [_tuned(name, cell) for name, cell in tuned.items()], "The same, after the same fine-tuning")
    columns = "tool, network, what is equal | MACs | time | drop | MACs: spectrim | time: spectrim | drop: spectrim | gain"
    others = {name: cell for name, cell in cells.items() if name not in pairs and name not in tuned}
    if others:
        rows = [_other(name, cell) for name, cell in others.items()]
        lines += table(columns, rows, "Tools that factorize: half of the MACs, nothing trained")
    columns = "way | ratio | time | MACs | parameters | top-1 of those that decide"
    for name, cell in pairs.items():
        rows = [_tried(way, row, cell) for way, row in cell["tried"].items()]
        lines += table(columns, rows, f"What Torch-Pruning was tried with: {_title(name)}")
    return "\n".join(lines)


def _title(name: str) -> str:
    """Return the network and the budget of a cell."""
    network, fraction, *_ = name.split(" | ")
    return f"{network}, {100 * float(fraction):.0f} % of the time"


def _time(row: Mapping[str, Any]) -> str:
    ratio, low, high = row["time"]
    return f"{ratio:.3f} ({low:.3f} to {high:.3f})"


def _gain(cell: Cell) -> str:
    return plus_minus(cell["paired"], "gain", "gain error", sign="+")


def _pair(name: str, cell: Cell) -> list[str]:
    both = cell[OURS], cell[PRUNING]
    before = f"{100 * cell[OURS]['before']:.2f} %"
    return [_title(name), before, *map(_time, both), *map(plus_minus, both), _gain(cell)]


def _tuned(name: str, cell: Cell) -> list[Any]:
    both = cell[OURS], cell[PRUNING]
    return [_title(name), cell["steps"], *map(plus_minus, both), _gain(cell), *(f"{row['rate']:g}" for row in both)]


def _other(name: str, cell: Cell) -> list[str]:
    network, tool, metric = name.split(" | ")
    sides = [f"{row['macs']:.3f} | {_time(row)} | {plus_minus(row)}" for row in (cell[tool], cell[OURS])]
    return [f"{tool}, {network}, {'time' if metric == 'latency' else 'MACs'}", *sides, _gain(cell)]


def _tried(way: str, row: Mapping[str, float], cell: Cell) -> list[str]:
    taken = " (taken)" if way == cell["pruned"]["way"] else ""
    numbers = [f"{row[key]:.3f}" for key in ("ratio", "time", "macs", "params")]
    return [way + taken, *numbers, f"{100 * row['held-out']:.2f} %"]
