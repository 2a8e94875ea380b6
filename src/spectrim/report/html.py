"""Reports as self-contained HTML pages: Jinja2 for the text, Bokeh for the figures, nothing loaded from elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from spectrim.core.records import Report
from spectrim.report import comparison, figures, findings, words
from spectrim.report.spectra import spectra
from spectrim.report.text import short

TAG = re.compile("<(?=/|!--|script)", re.I)  # in the text of a script: of a layer's name, say
MISSING = 'the HTML report needs Jinja2 and Bokeh: pip install "spectrim[report]"'


def page(report: Report) -> str:
    """Return a report as a page.

    Raises:
        ImportError: If Jinja2 or Bokeh are not installed.
    """
    drawn = _drawn(figures.figures, report)
    command, where = words.again(report)
    return _rendered(
        "report.html.jinja",
        drawn,
        title=f"{words.title(report)} - spectrim",
        report=report,
        words=words,
        short=short,
        deciding=findings.deciding(report),
        of_score=findings.of_score,
        lost=findings.lost,
        size=findings.size(report),
        time=findings.time(report),
        failures=findings.failures(report),
        on_target=findings.on_target(report),
        command=command,
        where=where,
        spectra=spectra(report) if "cut" in drawn else {},
        training=None if report.training is None else json.dumps(asdict(report.training), indent=1),
        settings=json.dumps(words.settings(report), indent=1),
    )


def compare(reports: Mapping[str, Report]) -> str:
    """Return a page with several reports beside each other.

    Args:
        reports: By the names that the runs go by; two at least.

    Raises:
        ImportError: If Jinja2 or Bokeh are not installed.
    """
    alike = comparison.alike(reports)
    first = next(iter(reports.values()))
    return _rendered(
        "comparison.html.jinja",
        _drawn(figures.compared, reports) if alike else {},
        title=f"{words.network(first)}: {len(reports)} runs" if alike else f"{len(reports)} runs",
        reports=reports,
        alike=alike,
        rows=comparison.rows(reports),
        differences=comparison.differences(reports),
        layers=comparison.layers(reports),
        spectra={},
    )


def _drawn(draw: Callable[[Any], dict[str, Any]], what: Any) -> dict[str, Any]:
    """Return the figures.

    Raises:
        ImportError: If Bokeh is not installed.
    """
    try:
        return draw(what)
    except ImportError as error:
        raise ImportError(MISSING) from error


def _rendered(template: str, drawn: Mapping[str, Any], **known: Any) -> str:
    """Return a page of a template, with its figures and what draws them."""
    try:
        from bokeh.embed import components
        from bokeh.resources import Resources
        from jinja2 import Environment, PackageLoader
    except ImportError as error:
        raise ImportError(MISSING) from error
    script, places = components(dict(drawn), wrap_script=False) if drawn else ("", {})
    library = Resources(mode="inline", components=["bokeh"]).render() if drawn else ""
    loader = PackageLoader("spectrim.report", "")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text = environment.get_template(template).render(figures=places, script=TAG.sub(r"\\x3c", script), library=library, **known)
    return text.encode(errors="backslashreplace").decode()  # of paths that are no UTF-8
