"""Drawings of results, made beside them when asked; they are not kept in the repository."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

Curves = Mapping[str, Sequence[tuple[float | str, float]]]  # label to points; x may be names


def draw(diagrams: Mapping[str, Curves], target: Path, *, scale: str = "linear") -> None:
    """Draw diagrams, side by side, into an SVG file; their titles say what x and y are."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(diagrams), 5), layout="tight")
    for axes, (title, curves) in zip(figure.subplots(1, len(diagrams), squeeze=False).flat, diagrams.items(), strict=True):
        for label, points in curves.items():
            axes.plot([x for x, _ in points], [y for _, y in points], "o-", label=label, markersize=4)
            axes.tick_params(axis="x", rotation=90 if points and isinstance(points[0][0], str) else 0)
        axes.set_title(title, fontsize=10)
        axes.set_yscale(scale)
        if curves:
            axes.legend(frameon=False, fontsize=8)
    figure.savefig(target, metadata={"Date": None})
