"""What the results on time are told in: tables, and a drawing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.plots import draw
from common.tables import Cell, head, plus_minus, table

WAYS = ("by latency", "by MACs, aligned", "by MACs, any ranks")
PREDICTIONS = {"formula": "the formula alone", "column": "corrected by timed networks", "loop": "the loop's last measurement"}
OVER = 0.02  # of the original's time, by which a budget may be missed


def markdown(results: dict[str, Any]) -> str:
    """Return all results as tables."""
    cells = results["cells"]
    shares = {name: cell for name, cell in cells.items() if not name.startswith("front")}
    found = {name: cell for name, cell in shares.items() if "missed" not in cell}
    runtimes = {f"{cell['runtime']['target']} {cell['runtime']['version']}" for cell in cells.values() if "runtime" in cell}
    lines = head("Time as a budget", results)
    lines += [
        f"One thread, batch 1, process CPU time on {', '.join(sorted(runtimes))}; other processes ran on the machine.",
        "",
    ]
    rows = [_shares(name, cell) for name, cell in found.items()]
    columns = "network, target, budget | ms | MACs | time (95 %) | share | aligned: share | any ranks: share"
    lines += table(columns, rows, "Plans by latency in a fresh process; share = MACs kept / time kept")
    over = [cell["by latency"][0] - cell["budget"] for cell in found.values()]
    if over:
        held = sum(each <= OVER for each in over)
        lines += [
            f"Never more than 2 % of the original's time above the budget: {held} of {len(over)}; most {max(over):+.4f}.",
            "",
        ]
    lines += [f"{_comma(name)}: {cell['missed']}.\n" for name, cell in shares.items() if "missed" in cell]
    lines += errors(found)
    columns = (
        "network, target, budget | formula | corrected | loop | measured | of no layer | least | timing, s | networks | all, s"
    )
    lines += table(columns, [_prices(name, cell) for name, cell in found.items()], "What was predicted, and what it took (CPU)")
    for network in dict.fromkeys(name.split(" | ")[1] for name in cells if name.startswith("front")):
        points = _points(cells, network)
        rows = [_point(way, cell) for way, cell in sorted(points, key=lambda point: point[1]["time"][0])]
        columns = "plan, budget | MACs | time (95 %) | drop | KL | ms of the original"
        lines += table(columns, rows, f"{network}, CIFAR-10, no fine-tuning: accuracy against time")
    return "\n".join(lines)


def errors(cells: Mapping[str, Cell]) -> list[str]:
    """Return the lines of a table of mean absolute errors of predictions, in per cent of what was measured."""
    rows = []
    for word in dict.fromkeys(name.split(" | ")[1] for name in cells):
        own = [cell for name, cell in cells.items() if f" | {word} | " in name]
        rows.append([word, *(f"{_error(own, key):.1f} %" for key in PREDICTIONS), len(own)])
    return (
        table(f"target | {' | '.join(PREDICTIONS.values())} | cells", rows, "Mean absolute error of the time kept")
        if rows
        else []
    )


def plot(results: dict[str, Any], target: Path) -> None:
    """Draw drop over time for every trained network."""
    diagrams = {}
    for network in dict.fromkeys(name.split(" | ")[1] for name in results["cells"] if name.startswith("front")):
        points = _points(results["cells"], network)
        curves = {way: sorted((100 * c["time"][0], c["drop"]) for each, c in points if each == way) for way in WAYS}
        diagrams[f"{network}: drop in points over % of the time kept"] = {way: found for way, found in curves.items() if found}
    draw(diagrams, target)


def _error(cells: Sequence[Cell], key: str) -> float:
    return 100 * statistics.mean(abs(cell[key] / cell["by latency"][0] - 1) for cell in cells)


def _points(cells: Mapping[str, Cell], network: str) -> list[tuple[str, Cell]]:
    """Return the ways and cells of a trained network."""
    prefix = f"front | {network} | "
    return [(name.split(" | ")[2], cell) for name, cell in cells.items() if name.startswith(prefix)]


def _comma(name: str) -> str:
    """Return a cell's name as a table can hold it."""
    return name.replace(" | ", ", ")


def _ratio(values: Sequence[float]) -> str:
    return f"{values[0]:.3f} ({values[1]:.3f} to {values[2]:.3f})"


def _shares(name: str, cell: Cell) -> list[str]:
    shares = [f"{cell[f'MACs of {way}'] / cell[way][0]:.2f}" for way in WAYS]
    return [_comma(name), f"{cell['original ms']:.1f}", f"{cell['MACs']:.3f}", _ratio(cell["by latency"]), *shares]


def _prices(name: str, cell: Cell) -> list[str]:
    ratios = [cell[key] for key in PREDICTIONS] + [cell["by latency"][0], max(cell["of no layer"], 0.0), cell["least"]]
    seconds = (f"{cell['timing']:.0f}", str(cell["networks timed"]), f"{cell['everything']:.0f}")
    return [_comma(name), *(f"{ratio:.3f}" for ratio in ratios), *seconds]


def _point(way: str, cell: Cell) -> list[str]:
    return [
        f"{way}, {100 * cell['budget']:g} %",
        f"{cell['macs kept']:.3f}",
        _ratio(cell["time"]),
        plus_minus(cell),
        f"{cell['KL']:.4f}",
        f"{cell['original ms']:.2f}",
    ]
