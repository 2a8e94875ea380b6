"""A report on the terminal: a table of the layers, and the findings, a line each."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spectrim.core.bench import Latency
from spectrim.core.factorization import describe
from spectrim.core.records import Report, Training
from spectrim.factorize import USUAL as USUAL_METHODS
from spectrim.report.findings import failures, on_target, time
from spectrim.report.words import dense
from spectrim.search import USUAL as USUAL_SEARCH

WIDTH = 80  # columns of a table as text


def table(report: Report) -> Table:
    """Return the layers as a terminal table of 80 columns for usual names, totals last; its title says what failed."""
    title = "\n".join([report.budget, *(failure.text for failure in failures(report))])
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("layer", overflow="fold", min_width=10)
    table.add_column("method", no_wrap=True)
    for name in ("rank", "params", "after", "MACs", "after"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report.rows:
        rank = "" if row.method == "-" else str(row.rank)
        method = dense(row) if row.method == "-" else row.method
        numbers = (row.params_before, row.params_after, row.macs_before, row.macs_after)
        table.add_row(escape(row.layer), escape(method), rank, *map(short, numbers), style="dim" if row.method == "-" else "")
    table.add_section()
    totals = (report.before.params, report.after.params, report.before.macs, report.after.macs)
    table.add_row("whole network", "", "", *map(short, totals))
    return table


def as_text(*tables: Table) -> str:
    """Return terminal tables as text of 80 columns: names that are longer go on below."""
    console = Console(width=WIDTH, emoji=False, no_color=True)
    with console.capture() as capture:
        for each in tables:
            console.print(each)
    return capture.get().rstrip("\n")


def lines(report: Report) -> list[str]:
    """Return the findings below the table, a line each."""
    lines = [
        f"params {report.before.params:,} -> {report.after.params:,} ({100 * report.kept[0]:.1f} % kept), "
        f"MACs {report.before.macs:,} -> {report.after.macs:,} ({100 * report.kept[1]:.1f} % kept)"
    ]
    lines += _chosen_by(report)
    lines += _scores(report)
    if report.latency is not None:
        lines.append(_latency(report.latency, report))
    if report.training is not None:
        lines.extend(_training(report.training))
    for curve in report.flatness:
        lines.append(
            f"loss on the way to low rank, {curve.label:16s} {curve.loss[0]:.3f} -> {curve.loss[-1]:.3f} nats "
            f"(kernels {100 * curve.distance:.1f} % away, {curve.examples:,} images)"
        )
    joint = "" if report.interactions is None else f", with interactions {report.interactions.predicted:.3g}"
    measured = "" if report.measured_harm is None else f"; measured after the refit {report.measured_harm:.3g}"
    if report.predicted_harm is not None:
        lines.append(f"harm, predicted layer by layer {report.predicted_harm:.3g} {report.harm_unit}{joint}{measured}")
    if report.interactions is not None and len(report.interactions.layers) > 1:
        pairs = [f"{first} and {second} {value:+.2g}" for first, second, value in report.interactions.strongest()]
        lines.append(f"interactions, strongest  {', '.join(pairs)}")
    lines.append("seconds  " + ", ".join(f"{name} {value:.1f}" for name, value in report.seconds.items()))
    lines += [f"note  {note}" for note in report.notes]
    for name, reason in report.skipped.items():
        lines.append(f"left alone  {name}: {reason}")
    return lines


def _scores(report: Report) -> list[str]:
    """Return a line for every score, the deciding ones first; numbers begin below each other."""
    sides = (("selection", report.selection), ("test", report.test))
    scores = [(f"{score.name} on the {side} images", score) for side, first in sides if first for score in first.every]
    width = max((len(label) for label, _ in scores), default=0)
    return [f"{label:{width}s}  {score.text()}" for label, score in scores]


def _latency(pair: tuple[Latency, Latency], report: Report) -> str:
    """Return a line on time."""
    old, new = pair
    threads = f"{old.threads} thread{'s' * (old.threads > 1)}"
    quartiles = f"quartiles {old.low_ms:.2f}-{old.high_ms:.2f}, {new.low_ms:.2f}-{new.high_ms:.2f}; {old.runs} runs each"
    compared = time(report)
    words = f"{old.median_ms:.2f} -> {new.median_ms:.2f} ms{on_target(report)} ({quartiles})"
    return "; ".join(filter(None, (f"latency, {threads:16s} {words}", compared.text if compared else "")))


def _chosen_by(report: Report) -> list[str]:
    """Return a line that names the rank selection and the decompositions that competed, where they are not the usual ones."""
    methods, search = report.config.get("methods", ()), report.config.get("search")
    usual = ([describe(method) for method in USUAL_METHODS], repr(USUAL_SEARCH))
    if (
        not isinstance(methods, (list, tuple))
        or not methods
        or (methods, search) == usual
        or not report.budget.startswith(("Keep(", "AtMost(", "MaxDrop("))
    ):
        return []
    return [f"chosen by {search} among {', '.join(map(str, methods))}"]


def _training(told: Training) -> list[str]:
    loss = " -> ".join(f"{value:.3f}" for value in dict.fromkeys((told.loss[0], told.loss[-1])))
    lines = [f"trained  {told.steps:,} steps on {told.images:,} images, loss of an epoch {loss}"]
    if told.distortions:
        share = 100 * told.distortion_seconds / max(told.seconds, 1e-9)
        lines[0] += f"; {told.distortions} distortions, {share:.2g} % of the time"
    return lines + [f"accuracy {name}  {100 * value:.2f}" for name, value in told.accuracy.items()]


def short(number: int) -> str:
    """Return a count in at most six characters, such as 147.5k."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.{2 if number < 10 * size else 1}f}{unit}"
    return str(number)
