"""What the thirteen networks' results are told in: tables of their own, README's and the docs', and a drawing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from common.networks import NETWORKS
from common.plots import draw
from common.provenance import HERE
from common.tables import head, plus_minus, table

METRICS = ("params", "macs")
PUBLISHED = {"params": 82.3, "macs": 59.6}  # mean reduction in per cent at under 1.5 points, DATE 2025


def markdown(results: dict[str, Any]) -> str:
    """Return all results as tables."""
    cells = results["cells"]
    lines = head("Thirteen CNNs", results)
    lines += [
        "Top-1 on test images; reductions, and in brackets the drop in points +- its paired standard error (negative: better "
        "than before). A network is compressed as far as 1.5 points on 5,000 held-out training images allow. The published "
        "means (DATE 2025) are of thirteen networks at under 1.5 points; the models, data and protocol are not public, "
        "so this is a comparison of magnitudes. A dash: not measured.",
        "",
    ]
    for data in dict.fromkeys(name.split(" | ")[0] for name in cells):
        lines += [f"## {data}", "", *summary(cells, data), "", "What was chosen without retraining, and what limits:", ""]
        columns = "decompositions | layers of most predicted harm, nats | budgets tried | passes | search seconds | ms"
        places = [(name, metric, f"{data} | {name} | {metric}") for name in NETWORKS for metric in METRICS]
        rows = [(name, metric, *chosen(cells[cell])) for name, metric, cell in places if cell in cells]
        lines += table(f"network | metric | {columns}", rows)
    return "\n".join(lines)


def chosen(cell: dict[str, Any]) -> list[str]:
    """Return a row of the table of what was chosen."""
    times = [
        f"{d} {cell[f'{d} ms before']:.2f} -> {cell[f'{d} ms after']:.2f}" for d in ("CPU", "GPU") if f"{d} ms before" in cell
    ]
    return [
        ", ".join(f"{count} {title}" for title, count in cell["decompositions"].items()),
        ", ".join(f"{layer} {harm:.4f}" for layer, harm in cell["layers of most harm"].items()),
        *(f"{cell[key]:.0f}" for key in ("budgets tried", "passes", "search seconds")),
        ", ".join(times),
    ]


def summary(cells: dict[str, Any], data: str) -> list[str]:
    """Return the table of the README: reductions, with the drop on test images in brackets, and what is not measured."""
    columns = [(f"{metric}{ending}", metric) for ending in ("", ", fine-tuned") for metric in METRICS]
    fewer: dict[str, dict[str, float]] = {cell: {} for cell, _ in columns}
    rows, missing = [], []
    for name in NETWORKS:
        base = cells.get(f"{data} | {name} | baseline")
        if base is None:
            missing.append(name)
            continue
        row = [name, f"{base['top-1']:.2f}", base["source"] if base["epochs"] is None else f"{base['epochs']:.3g}"]
        for column, metric in columns:
            cell = cells.get(f"{data} | {name} | {column}", {})
            if "drop" in cell:
                fewer[column][name] = 100 * (1 - cell[f"{metric} kept"])
                row.append(f"{fewer[column][name]:.1f} % ({plus_minus(cell)})")
            else:
                row.append("missed" if cell else "-")
        rows.append([*row, plus_minus(cells.get(f"{data} | {name} | control, fine-tuned"))])
    for what, needed in (("", columns[:2]), (" that were fine-tuned", columns)):
        common = [name for name in NETWORKS if all(name in fewer[column] for column, _ in needed)]
        if len(common) > 1:
            means = [f"{sum(fewer[column][name] for name in common) / len(common):.1f} %" for column, _ in needed]
            rows.append([f"mean of the {len(common)}{what}", "", "", *means, *[""] * (5 - len(means))])
    reductions = "fewer parameters | fewer MACs | fine-tuned: fewer parameters | fewer MACs"
    lines = table(f"{data} | top-1 | epochs | {reductions} | control", rows)[:-1]
    if len(rows) > 1:
        lines.append(f"| published mean of thirteen others | | | {' % | '.join(map(str, PUBLISHED.values()))} % | | | |")
    return [*lines, "", f"Not measured: {', '.join(missing)}."] if missing else lines


def plot(results: dict[str, Any], target: Path) -> None:
    """Draw the reductions, without and with fine-tuning, beside the published means."""
    cells, diagrams = results["cells"], {}
    rows = {f"{name}, {data}": f"{data} | {name}" for data, name, *_ in (cell.split(" | ") for cell in cells)}
    for metric, published in PUBLISHED.items():
        curves: dict[str, list[tuple[str, float]]] = {"published mean of thirteen": [(row, published) for row in rows]}
        for label, ending in (("no retraining", ""), ("one-shot fine-tuning", ", fine-tuned")):
            found = [(row, cells.get(f"{cell} | {metric}{ending}", {})) for row, cell in rows.items()]
            curves[label] = [(row, 100 * (1 - cell[f"{metric} kept"])) for row, cell in found if "drop" in cell]
        diagrams[f"fewer {metric} at 1.5 points, %"] = curves
    draw(diagrams, target)


def update_pages(cells: dict[str, Any]) -> None:
    """Put the tables of the results into README and docs, in place of those that are there."""
    for page in (HERE.parent / "README.md", HERE.parent / "docs" / "thirteen.md"):
        text = page.read_text()
        for data in dict.fromkeys(name.split(" | ")[0] for name in cells):
            lines = "\n".join(summary(cells, data))
            text = re.sub(rf"\| {data} \| top-1.*?\nNot measured: [^\n]*", lambda _, lines=lines: lines, text, flags=re.DOTALL)
        page.write_text(text)
