"""What a report is about, in words: the network, the images, the day, what was asked, and how it is made again."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import PurePath
from typing import Any

from spectrim.core.figures import Limit
from spectrim.core.records import Report, Row
from spectrim.core.score import POINTS, Score
from spectrim.report.findings import NAMES

ZOOS = ("torchvision", "timm")  # whose specs name the network better than its class does


def network(report: Report) -> str:
    """Return the network's name."""
    kind, _, name = (report.source.model if report.source else "").partition(":")
    return name if kind in ZOOS else report.network or name or kind or "a network"


def images(report: Report) -> str:
    """Return what the images are called; nothing where only a Python program knows it."""
    if report.source is None:
        return ""
    kind, colon, place = report.source.data.partition(":")
    return report.source.images or PurePath(place).name or (place if colon else kind)


def day(report: Report) -> str:
    """Return the date as 27 November 2026; nothing in old reports."""
    try:
        made = datetime.fromisoformat(report.date)
    except ValueError:
        return ""
    return f"{made.day} {made:%B %Y}"


def title(report: Report) -> str:
    """Return network, images, what was done and when."""
    data = f" on {images(report)}" if images(report) else ""
    date = f" on {day(report)}" if day(report) else ""
    return f"{network(report)}{data}, {report.task}{date}"


def asked(report: Report) -> str:
    """Return the budget as a sentence; as written in code in old reports."""
    if not report.limits:
        return report.budget
    score = report.selection or report.test
    return "; ".join(_asked(limit, score) for limit in report.limits)


def _asked(limit: Limit, score: Score | None) -> str:
    name = NAMES[limit.metric]
    if limit.kind == "MaxDrop":
        least = f"as few {name} as possible".replace("few time", "little time")
        if score is None:
            return f"{least} at a drop of at most {limit.value:g}"
        much = f"{limit.value:g} {score.unit}".rstrip()
        return f"{least} at a {score.direction} of at most {much} in {score.name}"
    if limit.kind == "Keep":
        return f"at most {100 * limit.value:g} % of the {name}"
    return f"at most {limit.value:g} ms" if limit.metric == "latency" else f"at most {limit.value:,.0f} {name}"


def again(report: Report) -> tuple[str, str]:
    """Return what makes the result again, a command line or Python, and where it was run or what it leaves out."""
    if report.source is not None and report.source.command:
        return report.source.command, f"in {report.source.folder}" if report.source.folder else ""
    if report.source is not None or not report.limits:
        return "", ""
    bounds = [f'st.{limit.kind}({limit.value:g}, "{limit.metric}")' for limit in report.limits]
    budget = bounds[0] if len(bounds) == 1 else f"[{', '.join(bounds)}]"
    evaluate = "" if report.selection is None else ", evaluate=evaluate"
    call = f"st.compress(model, example, budget={budget}, calibration=calibration{evaluate}, config=config)"
    return call, "with the settings below; a report does not know the Python program that made it"


def change(score: Score) -> str:
    """Return a score before and after, in its unit; fractions in per cent."""
    return f"{' → '.join(score.shown())} {'%' if score.unit == POINTS else score.unit}".rstrip()


def megabytes(sizes: tuple[int, int]) -> str:
    """Return bytes before and after, in megabytes or kilobytes."""
    unit, name, digits = (1e6, "MB", 2) if sizes[0] >= 1e6 else (1e3, "kB", 1)
    return f"{sizes[0] / unit:.{digits}f} → {sizes[1] / unit:.{digits}f} {name}"


def settings(report: Report) -> Mapping[str, Any]:
    """Return what decides the result."""
    return {**report.config, "calibration images": report.images}


def method(text: str) -> str:
    """Return a method as written in code without its options' quotes."""
    return text.replace("'", "").replace("(", " (")


def dense(row: Row) -> str:
    """Return what became of a layer that was not replaced."""
    if not row.fitted:
        return "left alone"
    return "dense, refitted" if "refitted" in row.fitted else "dense, scaled"
