"""The report as one self-contained HTML page: Jinja2 for the text, matplotlib for the plots, nothing loaded from elsewhere."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from spectrim.core.records import Interactions, Report
from spectrim.report.text import compared, slower


def page(report: Report) -> str:
    """Return the page.

    Raises:
        ImportError: If Jinja2 or matplotlib are not installed.
    """
    try:
        from jinja2 import Environment

        plots = _plots(report)
    except ImportError as error:
        raise ImportError("the HTML report needs Jinja2 and matplotlib: pip install jinja2 matplotlib") from error
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    source = files("spectrim.report").joinpath("report.html.jinja").read_text()
    return environment.from_string(source).render(
        report=report,
        slower=slower(report),
        compared=compared(report),
        plots=plots,
        training=None if report.training is None else json.dumps(asdict(report.training), indent=1),
        settings=json.dumps(_settings(report), indent=1),
    )


def _settings(report: Report) -> dict[str, Any]:
    """Return what the result can be made again from."""
    source = {} if report.source is None else {"source": asdict(report.source)}
    return {"config": dict(report.config), "calibration images": report.images, "versions": dict(report.versions), **source}


def _plots(report: Report) -> list[tuple[str, str]]:
    """Return caption and SVG of each plot."""
    plots = [("MACs of each layer, before and after", _bars(report, "macs", "MACs of one example"))]
    plots.append(("Parameters of each layer, before and after", _bars(report, "params", "parameters")))
    found = report.interactions
    if found is not None and found.layers:
        plots.append(
            (
                "Harm that restoring each layer alone would take away (negative: later layers were fitted to its change)",
                _marginal(found, report.harm_unit),
            )
        )
    if found is not None and len(found.layers) > 1:
        plots.append(("Which layers' harms belong together: red adds up, blue pays back", _partners(found, report.harm_unit)))
    if report.flatness:
        plots.append(("Loss on the straight way from the kernels to their low-rank reconstructions", _flatness(report)))
    if report.tries:
        plots.append(("What MaxDrop tried: what each budget lost", _tries(report)))
    return plots


def _bars(report: Report, metric: str, label: str) -> str:
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    rows = report.rows
    figure = Figure(figsize=(9, 1 + 0.2 * len(rows)))
    axes = figure.subplots()
    places = list(range(len(rows)))
    axes.barh(places, [getattr(row, f"{metric}_before") for row in rows], color="#d5dae1", height=0.8, label="before")
    axes.barh(places, [getattr(row, f"{metric}_after") for row in rows], color="#2f6fa8", height=0.45, label="after")
    axes.set_yticks(places, [row.layer for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return _svg(figure)


def _tries(report: Report) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3))
    axes = figure.subplots()
    tried = sorted(report.tries, key=lambda found: found.kept)
    axes.plot([100 * found.kept for found in tried], [found.drop for found in tried], "o-", color="#2f6fa8")
    axes.set_xlabel("kept, %")
    score = report.selection
    axes.set_ylabel("drop" if score is None else f"{score.direction} of {score.name}, {score.unit}".rstrip(", "))
    axes.spines[["top", "right"]].set_visible(False)
    return _svg(figure)


def _flatness(report: Report) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3))
    axes = figure.subplots()
    for curve, color in zip(report.flatness, ("#8a94a0", "#2f6fa8", "#c05020"), strict=False):
        label = f"{curve.label} ({100 * curve.distance:.1f} % away)"
        axes.errorbar(curve.t, curve.loss, curve.error, fmt="o-", color=color, markersize=4, capsize=2, label=label)
    axes.set_xlabel("t: 0 the network itself, 1 all planned kernels at low rank")
    axes.set_ylabel("loss, nats")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return _svg(figure)


def _marginal(found: Interactions, unit: str) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1 + 0.2 * len(found.layers)))
    axes = figure.subplots()
    places = list(range(len(found.layers)))
    axes.barh(places, found.marginal, color="#2f6fa8", height=0.6)
    axes.set_yticks(places, list(found.layers), fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.spines[["top", "right"]].set_visible(False)
    return _svg(figure)


def _partners(found: Interactions, unit: str) -> str:
    import numpy as np
    from matplotlib.figure import Figure

    size = len(found.layers)
    figure = Figure(figsize=(2.5 + 0.22 * size, 1.5 + 0.22 * size))
    axes = figure.subplots()
    shared = np.array(found.partners) * (1 - np.eye(size))
    limit = max(float(np.abs(shared).max()), 1e-12)
    image = axes.imshow(shared, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.set_xticks(range(size), list(found.layers), fontsize=7, rotation=90)
    axes.set_yticks(range(size), list(found.layers), fontsize=7)
    figure.colorbar(image, ax=axes, label=unit, shrink=0.7)
    return _svg(figure)


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
