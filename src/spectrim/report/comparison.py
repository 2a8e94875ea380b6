"""Several runs beside each other, as what a page says of them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from spectrim.core.records import Report, Row
from spectrim.core.score import Score
from spectrim.report import findings, words
from spectrim.report.findings import Finding, same_clock

Told = Finding | str


def alike(reports: Mapping[str, Report]) -> bool:
    """Whether differences mean something: the same network with the same score before, on as many images."""
    kinds = set()
    for report in reports.values():
        score = report.test or report.selection
        told = None if score is None else (score.name, score.unit, score.before, score.examples, report.test is None)
        kinds.add((report.before, report.network, told))
    return len(kinds) == 1


def rows(reports: Mapping[str, Report]) -> dict[str, dict[str, Told]]:
    """Return what runs are compared in: by quantity, a cell a run."""
    cells = {name: _cells(report) for name, report in reports.items()}
    names = dict.fromkeys(quantity for own in cells.values() for quantity in own)
    return {quantity: {name: own.get(quantity, "") for name, own in cells.items()} for quantity in names}


def _cells(report: Report) -> dict[str, Told]:
    found: dict[str, Told] = {"result": words.title(report), "asked for": words.asked(report)}
    failures = findings.failures(report)
    if failures:
        found["failures"] = Finding(failures[0].kind, "; ".join(failure.text for failure in failures))
    for where, first in (("test images", report.test), ("selection images", report.selection)):
        for score in first.every if first else ():
            found[f"{score.name}, {where}"] = words.change(score)
    found |= {"score": findings.deciding(report) or "not measured"}
    for score in _beside(report):
        found[f"score, {score.name}"] = findings.of_score(score)
    if report.stored is not None:
        found["bytes"] = words.megabytes(report.stored)
    found["size"] = findings.size(report)
    found["parameters kept"], found["MACs kept"] = (f"{100 * kept:.1f} %" for kept in report.kept)
    if report.latency is not None:
        old, new = report.latency
        found["milliseconds"] = f"{old.median_ms:.3g} → {new.median_ms:.3g}{findings.on_target(report)}"
    found["time"] = findings.time(report) or "not measured"
    if report.measured_harm is not None:
        found["harm, measured"] = f"{report.measured_harm:.4f} {report.harm_unit}"
    found["seconds it took"] = f"{sum(report.seconds.values()):,.0f}"
    found["versions"] = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return found


def _beside(report: Report) -> tuple[Score, ...]:
    """Return the scores that were measured beside the one that counts."""
    score = report.test or report.selection
    return score.also if score else ()


def differences(reports: Mapping[str, Report]) -> dict[str, str]:
    """Return how each run differs from the first, in a sentence; nothing where that would mean nothing."""
    if not alike(reports):
        return {}
    (_, first), *others = reports.items()
    found = {name: "; ".join(filter(None, (_scores(first, report), _times(first, report)))) for name, report in others}
    return {name: sentence for name, sentence in found.items() if sentence}


def _scores(first: Report, other: Report) -> str:
    one, two = first.test or first.selection, other.test or other.selection
    if one is None or two is None:
        return ""
    more = two.number(two.scale * (two.after - one.after))
    errors = [score.standard_error for score in (one, two) if score.standard_error is not None]
    error = f" ± {two.number(math.hypot(*errors))}" if len(errors) == 2 else ""
    return f"{two.name} {'' if more.startswith('-') else '+'}{more}{error} {two.unit}".rstrip()


def _times(first: Report, other: Report) -> str:
    one, two = first.verdict, other.verdict
    if one is None or two is None or not same_clock([first, other]):
        return ""
    return f"time {two.ratio / one.ratio:.2f} times that of the first ({two.low / one.high:.2f}-{two.high / one.low:.2f})"


def layers(reports: Mapping[str, Report]) -> dict[str, dict[str, str]]:
    """Return what each run did to each layer, in words."""
    each = {name: {row.layer: _done(row) for row in report.rows} for name, report in reports.items()}
    names = dict.fromkeys(layer for own in each.values() for layer in own)
    return {layer: {name: own.get(layer, "") for name, own in each.items()} for layer in names}


def _done(row: Row) -> str:
    if row.method == "-":
        return words.dense(row)
    return f"{words.method(row.method)}, rank {row.rank}, {100 * row.macs_after / max(row.macs_before, 1):.0f} % of the MACs"
