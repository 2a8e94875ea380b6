"""Figures of one layer: its spectrum with the cut, and what every decomposition offered; the page changes the layer."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from spectrim.core.figures import Spectrum
from spectrim.core.records import Report, Row
from spectrim.report.drawing import BAD, PLAIN, SERIES, figure, hover, legend, zoom
from spectrim.report.words import method

Columns = dict[str, dict[str, list[Any]]]  # of a layer's figures: by source, and by name


def spectra(report: Report) -> dict[str, Columns]:
    """Return for each replaced layer with spectra the columns of its figures, by source; the most harmful layer first."""
    found = {}
    for row in sorted(report.rows, key=lambda row: -row.harm):
        own = [spectrum for spectrum in report.spectra if spectrum.layer == row.layer]
        if row.method != "-" and own:
            found[row.layer] = _columns(row, own)
    return found


def _columns(row: Row, own: Sequence[Spectrum]) -> Columns:
    """Return the columns of one layer's figures: harms that are zero have no place on a logarithmic axis."""
    lines: dict[str, list[Any]] = {name: [] for name in ("xs", "ys", "method", "color")}
    options, ranks = [], []
    for spectrum, color in zip(own, itertools.cycle(SERIES), strict=False):
        title = method(spectrum.method)
        rows = zip(spectrum.ranks, spectrum.macs, spectrum.harms, strict=True)
        points = [(rank, _share(macs, row), value) for rank, macs, value in rows if value > 0]
        options += [(share, value, title, str(rank), color) for rank, share, value in points]
        for name, value in zip(lines, ([x for _, x, _ in points], [y for _, _, y in points], title, color), strict=True):
            lines[name].append(value)
        if spectrum.method == row.method and isinstance(row.rank, int):
            ranks = [(r, value, color if r <= row.rank else PLAIN) for r, _, value in points if isinstance(r, int)]
    chosen = [(_share(row.macs_after, row), row.harm, method(row.method), str(row.rank))] if row.harm > 0 else []
    return {
        "options": _table(("share", "harm", "method", "rank", "color"), options),
        "lines": lines,
        "ranks": _table(("rank", "harm", "color"), ranks),
        "cut": {"rank": [row.rank] if ranks else []},
        "chosen": _table(("share", "harm", "method", "rank"), chosen),
    }


def _share(macs: int, row: Row) -> float:
    return 100 * macs / max(row.macs_before, 1)


def _table(names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> dict[str, list[Any]]:
    return {name: [row[index] for row in rows] for index, name in enumerate(names)}


def of_layer(layers: Mapping[str, Columns]) -> dict[str, Any]:
    """Return the two figures of the first layer; the page puts another layer's columns in their named sources."""
    from bokeh.models import ColumnDataSource

    if not layers:
        return {}
    sources = {name: ColumnDataSource(dict(data), name=name) for name, data in next(iter(layers.values())).items()}
    cut = figure(320, y_axis_type="log")
    cut.line("rank", "harm", source=sources["ranks"], color=PLAIN, line_width=1.5)
    points = cut.scatter("rank", "harm", source=sources["ranks"], size=7, color="color")
    cut.vspan("rank", source=sources["cut"], line_color=BAD, line_dash="dashed", line_width=2)
    cut.xaxis.axis_label, cut.yaxis.axis_label = "rank", "harm if cut here"
    hover(cut, [points], [("rank", "@rank"), ("harm", "@harm{0.00e}")])
    options = figure(320, y_axis_type="log")
    options.multi_line("xs", "ys", source=sources["lines"], color="color", line_width=1.5)
    others = options.scatter("share", "harm", source=sources["options"], size=6, color="color", legend_field="method")
    chosen = options.scatter("share", "harm", source=sources["chosen"], size=20, marker="star", color=BAD)
    options.xaxis.axis_label, options.yaxis.axis_label = "MACs of the layer kept, %", "predicted harm"
    lines = [("", "@method"), ("rank", "@rank"), ("MACs kept, %", "@share{0.0}"), ("harm", "@harm{0.00e}")]
    hover(options, [others, chosen], lines)
    legend(options)
    zoom(options)
    options.legend[0].ncols = 2
    return {"cut": cut, "options": options}
