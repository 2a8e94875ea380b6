"""What the results on rank selection are told in: tables, and a drawing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.plots import draw
from common.tables import head, plus_minus, rows_of, table

CHECKPOINTS = {"ResNet-20": "resnet20-cifar10jpeg", "ResNet-32": "resnet32-cifar10jpeg"}
METRICS = ("macs", "params")
BUDGETS = (0.8, 0.65, 0.5, 0.35, 0.25, 0.2)
COLUMNS = ("drop", "standard error", "KL", "search seconds", "forward passes", "backward passes", "peak memory, MiB")
COMPARISONS = {
    "prediction": "random plans without refit: predictions against measured KL",
    "steps": "random steps around the refitted network: predictions against measured KL",
}


def markdown(results: dict[str, Any], *, methods: Sequence[str], rungs: Sequence[str]) -> str:
    """Return all results as tables."""
    cells, lines = results["cells"], head("Rank selections", results)
    lines += [
        "CIFAR-10 (JPEG copy), no fine-tuning. Drop: points of top-1 on 10,000 test images, +- paired standard error. KL: nats "
        "on the same images. Seconds and passes (over 1,024 images) include statistics, menu, selection and refit; other "
        "processes ran on the machine, so compare seconds with care. A dash: not run.",
        "",
    ]
    percents = " | ".join(f"{100 * budget:g} %" for budget in BUDGETS)
    for network in CHECKPOINTS:
        for metric in METRICS:
            rows = [
                [method, *(plus_minus(cells.get(f"{network} | {metric} | {budget} | {method}")) for budget in BUDGETS)]
                for method in methods
            ]
            lines += table(f"selection | {percents}", rows, f"{network}, {metric} kept: drop")
        found = {method: cells.get(f"{network} | macs | 0.35 | {method}") for method in methods}
        rows = [[method, *(f"{cell[column]:.4g}" for column in COLUMNS)] for method, cell in found.items() if cell]
        lines += table(f"selection | {' | '.join(COLUMNS)}", rows, f"{network} at 35 % of the MACs: what it took")
        for name, title in COMPARISONS.items():
            if f"{network} | {name}" in cells:
                columns, rows = rows_of(cells[f"{network} | {name}"], 3)
                lines += table(f"what | {columns}", rows, f"{network}, {title}")
    rows = []
    for rung in rungs:
        pair = [cells.get(f"ResNet-20 | ladder | {budget} | {rung}") for budget in (0.5, 0.35)]
        rows.append([rung, *(text for cell in pair for text in (plus_minus(cell), f"{cell['KL']:.4f}" if cell else "-"))])
    lines += table("rung | 50 % MACs | KL | 35 % MACs | KL", rows, "ResNet-20, ablation ladder: drop and KL")
    return "\n".join(lines)


def plot(results: dict[str, Any], target: Path, *, methods: Sequence[str]) -> None:
    """Draw drop over kept fraction for every checkpoint and metric."""
    cells, diagrams = results["cells"], {}
    for network, metric in itertools.product(CHECKPOINTS, METRICS):
        found = {m: [(b, cells.get(f"{network} | {metric} | {b} | {m}")) for b in BUDGETS] for m in methods}
        curves = {m: [(100 * b, max(cell["drop"], 0.05)) for b, cell in each if cell] for m, each in found.items()}
        diagrams[f"{network}: drop in points over % of the {metric} kept"] = curves
    draw(diagrams, target, scale="log")
