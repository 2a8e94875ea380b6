"""The times of a bench as bars, in a file."""

from __future__ import annotations

import os

from spectrim.core.bench import Bench

COLOURS = ("#d5dae1", "#2f6fa8", "#c05020", "#5a9367", "#8a6fb0")  # of the first network, the second, ...


def plot(bench: Bench, path: str | os.PathLike[str]) -> None:
    """Write a bar for every network on every target: median, quartiles, and what the pairs of runs say.

    Args:
        bench: From `bench`.
        path: File to write; its ending (.png, .svg, .pdf) says as what.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the ending is not known.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('the plot needs matplotlib: pip install "spectrim[report]"') from error
    names, settings = (list(dict.fromkeys(getattr(row, name) for row in bench.rows)) for name in ("model", "setting"))
    places = [number + settings.index(row.setting) for number, row in enumerate(bench.rows)]
    figure = Figure(figsize=(8, 1 + 0.3 * len(bench.rows) + 0.3 * len(settings)))
    axes = figure.subplots()
    for place, row in zip(places, bench.rows, strict=True):
        times = row.process if row.clock == "process" else row.wall
        quartiles = [[times.median_ms - times.low_ms], [times.high_ms - times.median_ms]]
        axes.barh(place, times.median_ms, xerr=quartiles, color=COLOURS[names.index(row.model) % len(COLOURS)], height=0.8)
        said = "" if row.verdict is None else f"{row.verdict.ratio:.2f} times: {row.verdict.word}"
        axes.annotate(said, (times.high_ms, place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8)
        if row.verdict is None:
            axes.annotate(row.setting, (0, place - 0.75), va="center", fontsize=8, annotation_clip=False)
    axes.set_yticks(places, [row.model for row in bench.rows])
    axes.set_ylim(len(bench.rows) + len(settings) - 1.4, -1.4)
    axes.margins(x=0.25)
    axes.set_xlim(left=0)
    axes.set_xlabel("ms of one forward: median and quartiles (CPU time on one thread, else time of the wall)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(os.fspath(path), bbox_inches="tight", dpi=150)
