"""The figures of the page, by Bokeh: they show what the records hold when a pointer is over them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from spectrim.core.figures import Try
from spectrim.core.records import Report
from spectrim.core.score import POINTS, Score, holds
from spectrim.report.drawing import BAD, GOOD, PLAIN, SERIES, figure, hover, legend, short, zoom
from spectrim.report.findings import allowed, same_clock
from spectrim.report.spectra import of_layer, spectra


def figures(report: Report) -> dict[str, Any]:
    """Return the figures that a report has, by name.

    Raises:
        ImportError: If Bokeh is not installed.
    """
    found: dict[str, Any] = {}
    score = report.selection
    if score is not None and len(report.tries) > 1:
        found |= _trade_offs({"": (report, score)})
    if any(row.method != "-" for row in report.rows):
        found["saved"] = _saved(report)
    if report.spectra:
        found |= of_layer(spectra(report))
    joint = report.interactions
    if joint is not None and joint.layers:
        found["marginal"] = _bars(joint.layers, {report.harm_unit: joint.marginal}, f"harm, {report.harm_unit}")
    if joint is not None and len(joint.layers) > 1:
        found["partners"] = _partners(joint.layers, joint.partners, report.harm_unit)
    if report.flatness:
        found["flatness"] = _flatness(report)
    return found


def compared(reports: Mapping[str, Report]) -> dict[str, Any]:
    """Return the trade-offs of several runs in the same figures, of those that tried several budgets; times if of one machine.

    Args:
        reports: By the names of the runs; scores of the same network on the same images.

    Raises:
        ImportError: If Bokeh is not installed.
    """
    tried = {name: (each, each.selection) for name, each in reports.items() if each.selection and len(each.tries) > 1}
    found = _trade_offs(tried) if tried else {}
    return found if same_clock(reports.values()) else {name: each for name, each in found.items() if not name.endswith("time")}


def _trade_offs(tried: Mapping[str, tuple[Report, Score]]) -> dict[str, Any]:
    """Return score against size, MACs and time, of the runs by name."""
    panels = {"params": "parameters kept, %", "macs": "MACs kept, %", "time": "time, % of the original's"}
    found = {}
    for field, label in panels.items():
        rows = {name: _points(report, score, field) for name, (report, score) in tried.items()}
        if any(len(points["x"]) > 1 for points in rows.values()):
            found[f"trade_off_{field}"] = _trade_off(rows, tried, label)
    return found


def _points(report: Report, score: Score, field: str) -> dict[str, list[Any]]:
    """Return the budgets tried as columns; the last row is the original network."""
    bound, rows = allowed(report), []
    for tried in report.tries:
        same = _same(tried, report, score)
        share = _share(tried, field, report)
        if share is None and field == "time" and same and report.verdict is not None:
            share = report.verdict.ratio
        if share is None:
            continue
        error = tried.error or 0.0
        value = _after(score, tried.drop)
        over = bound is not None and not holds(tried.drop, bound)
        what = "returned" if same else "over the bound" if over else "tried"
        told = f"{score.number(tried.drop)}{f' ± {score.number(error)}' if error else ''} {score.unit}"
        rows.append((100 * share, value, value - error, value + error, what, score.number(value), told, f"{tried.harm:.3g}"))
    before = score.scale * score.before
    rows.append((100.0, before, before, before, "original", score.number(before), "0", "0"))
    names = ("x", "y", "low", "high", "what", "score", "drop", "harm")
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def _after(score: Score, drop: float) -> float:
    """Return a score as it is shown, after so much of a drop."""
    return score.scale * score.before - drop * (1 if score.larger_is_better else -1)


def _share(tried: Try, field: str, report: Report) -> float | None:
    """Return the share that is kept; reports of versions up to 0.1 know that of the budget's metric only."""
    share: float | None = getattr(tried, field)
    return tried.kept if share is None and f"'{field}'" in report.budget else share


def _same(tried: Try, report: Report, score: Score) -> bool:
    """Whether it is the budget whose network was returned."""
    share = tried.kept if tried.params is None else tried.params
    return abs(tried.drop - score.drop) < 1e-6 and any(abs(share - kept) < 1e-6 for kept in report.kept)


LOOKS = {  # marker, size and colour of a budget
    "tried": ("circle", 8, GOOD),
    "over the bound": ("x", 10, BAD),
    "returned": ("star", 18, GOOD),
    "original": ("square", 8, PLAIN),
}


def _trade_off(rows: Mapping[str, Mapping[str, list[Any]]], tried: Mapping[str, tuple[Report, Score]], label: str) -> Any:
    from bokeh.models import ColumnDataSource

    plot, drawn = figure(300), []
    for number, (name, columns) in enumerate(rows.items()):
        order = sorted(range(len(columns["x"])), key=lambda index: columns["x"][index])
        data = {key: [values[index] for index in order] for key, values in columns.items()}
        if name or not label.startswith("time"):  # budgets are in order of what they keep, not of time
            color = SERIES[number % len(SERIES)] if name else PLAIN
            plot.line(data["x"], data["y"], color=color, line_width=1.5, line_alpha=0.8, **_label(name))
        for what, (marker, size, color) in LOOKS.items():
            part = [index for index, each in enumerate(data["what"]) if each == what]
            if not part:
                continue
            source = ColumnDataSource({key: [values[index] for index in part] for key, values in data.items()})
            plot.segment("x", "low", "x", "high", source=source, color=color)
            named = {} if name else {"legend_label": what}
            drawn.append(plot.scatter("x", "y", source=source, marker=marker, size=size, color=color, **named))
    for report, score in tried.values():
        if (bound := allowed(report)) is not None:
            plot.hspan([_after(score, bound)], color=BAD, line_dash="dashed", line_width=1.5)
    _, first = next(iter(tried.values()))
    told = [("", "@what"), (label, "@x{0.0}"), (first.name, "@score"), (first.direction, "@drop"), ("harm", "@harm")]
    hover(plot, drawn, told)
    plot.xaxis.axis_label = label
    unit = "%" if first.unit == POINTS else first.unit
    plot.yaxis.axis_label = f"{first.name}{', ' if unit else ''}{unit}{'' if first.larger_is_better else ' (less is better)'}"
    legend(plot)
    zoom(plot)
    return plot


def _label(name: str) -> dict[str, str]:
    return {"legend_label": name} if name else {}


def _bars(layers: Sequence[str], values: Mapping[str, Sequence[float]], label: str, number: str = "0.0000") -> Any:
    """Return horizontal bars for each layer, one a series."""
    from bokeh.models import ColumnDataSource

    count, width = len(values), 0.8 / len(values)
    plot = figure(70 + (12 + 14 * count) * len(layers), y_range=(len(layers) - 0.4, -0.6))
    drawn = []
    for index, (name, column) in enumerate(values.items()):
        at = [place + (index - (count - 1) / 2) * width for place in range(len(layers))]
        source = ColumnDataSource({"y": at, "x": list(column), "layer": list(layers), "what": [name] * len(layers)})
        color = SERIES[index % len(SERIES)]
        named = _label(name if count > 1 else "")
        drawn.append(plot.hbar("y", right="x", height=0.9 * width, source=source, color=color, line_color=None, **named))
    plot.yaxis.ticker = list(range(len(layers)))
    plot.yaxis.major_label_overrides = {place: short(name) for place, name in enumerate(layers)}
    plot.ygrid.visible = False
    plot.xaxis.axis_label = label
    hover(plot, drawn, [("", "@layer"), ("@what", f"@x{{{number}}}")])
    if count > 1:
        legend(plot)
    return plot


def _saved(report: Report) -> Any:
    """Return what each replaced layer takes from the whole network's parameters, MACs and time."""
    rows = [row for row in report.rows if row.method != "-"]
    whole = report.before
    values = {
        "parameters": [100 * (row.params_before - row.params_after) / max(whole.params, 1) for row in rows],
        "MACs": [100 * (row.macs_before - row.macs_after) / max(whole.macs, 1) for row in rows],
    }
    times = [(math.nan, 0.0) if row.time is None else row.time for row in rows]
    if report.latency is not None and any(row.time for row in rows):
        values["time"] = [100 * (before - after) / report.latency[0].median_ms for before, after in times]
    return _bars([row.layer for row in rows], values, "saved, % of the whole", "0.0")


def _partners(layers: Sequence[str], partners: Sequence[Sequence[float]], unit: str) -> Any:
    """Return the shared harms as a map: red adds up, blue pays back, and nothing is the page's own colour."""
    count = len(layers)
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
    limit = max((abs(partners[i][j]) for i, j in pairs), default=0.0) or 1.0
    data = {
        "x": [j for _, j in pairs],
        "y": [i for i, _ in pairs],
        "value": [partners[i][j] for i, j in pairs],
        "first": [layers[i] for i, _ in pairs],
        "second": [layers[j] for _, j in pairs],
        "color": [BAD if partners[i][j] > 0 else SERIES[0] for i, j in pairs],
        "alpha": [abs(partners[i][j]) / limit for i, j in pairs],
    }
    plot = figure(130 + 18 * count, y_range=(count - 0.5, -0.5), x_range=(-0.5, count - 0.5))
    drawn = plot.rect("x", "y", 0.95, 0.95, source=data, color="color", alpha="alpha", line_color=None)
    for axis in (plot.xaxis, plot.yaxis):
        axis.ticker = list(range(count))
        axis.major_label_overrides = {place: short(name) for place, name in enumerate(layers)}
    plot.xaxis.major_label_orientation = "vertical"
    plot.grid.visible = False
    hover(plot, [drawn], [("", "@first and @second"), (unit, "@value{+0.0000}")])
    return plot


def _flatness(report: Report) -> Any:
    """Return the loss on the straight way from the kernels to their low-rank reconstructions."""
    plot, drawn = figure(300), []
    for curve, color in zip(report.flatness, SERIES, strict=False):
        label = f"{curve.label} ({100 * curve.distance:.1f} % away)"
        low, high = ([loss + sign * error for loss, error in zip(curve.loss, curve.error, strict=True)] for sign in (-1, 1))
        source = {"t": curve.t, "loss": curve.loss, "accuracy": [100 * value for value in curve.accuracy]}
        plot.segment(curve.t, low, curve.t, high, color=color)
        plot.line(curve.t, curve.loss, color=color, line_width=2, legend_label=label)
        drawn.append(plot.scatter("t", "loss", source={key: list(each) for key, each in source.items()}, size=7, color=color))
    plot.xaxis.axis_label = "t: 0 the network itself, 1 all planned kernels at low rank"
    plot.yaxis.axis_label = "loss, nats"
    hover(plot, drawn, [("t", "@t"), ("loss", "@loss{0.000}"), ("accuracy, %", "@accuracy{0.0}")])
    legend(plot)
    plot.legend[0].orientation = "vertical"
    return plot
