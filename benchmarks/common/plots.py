"""Drawings of results, made beside them when asked; they are not kept in the repository."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Panel(NamedTuple):
    """One diagram: lines through the points (x, y) of `curves`, only points where x is a name; dotted lines at `levels`."""

    title: str
    x: str
    y: str
    curves: Mapping[str, Sequence[tuple[float | str, float]]]
    levels: Mapping[str, float]
    scale: str = "linear"


def draw(panels: Sequence[Panel], columns: int, target: Path) -> None:
    """Draw diagrams into an SVG file."""
    from matplotlib.figure import Figure

    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5 * columns, 4 * rows), layout="tight")
    for axes, panel in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=False):
        for label, points in panel.curves.items():
            named = bool(points) and isinstance(points[0][0], str)
            axes.plot([x for x, _ in points], [y for _, y in points], "o" if named else "o-", label=label, markersize=4)
            axes.tick_params(axis="x", rotation=90 if named else 0)
        for label, height in panel.levels.items():
            axes.axhline(height, color="grey", linestyle=":", label=label)
        axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y, yscale=panel.scale)
        if panel.curves:
            axes.legend(frameon=False, fontsize=8)
    figure.savefig(target, metadata={"Date": None})
