"""What a report says at first sight: of scores, size and time whether it is good or bad, and which bounds do not hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from spectrim.core.figures import Limit
from spectrim.core.records import Report
from spectrim.core.score import Score, holds

NAMES = {"params": "parameters", "macs": "MACs", "bytes": "bytes", "latency": "time"}
NAMELESS = Score.name  # of scores that nobody gave a name
SURE = 2  # standard errors


@dataclass(frozen=True)
class Finding:
    """One sentence, and whether it is good news, bad, or open: no difference found, or less than the measurement's error."""

    kind: Literal["good", "bad", "open"]
    text: str


def deciding(report: Report) -> Finding | None:
    """Return what became of the score that counts: on the test images if there are any; None without a score."""
    score = report.test or report.selection
    return None if score is None else of_score(score, allowed(report))


def of_score(score: Score, bound: float | None = None) -> Finding:
    """Return what became of a score.

    Args:
        score: Before and after.
        bound: What it may lose, in its unit; None if nothing was asked of it.
    """
    told = lost(score)
    if bound is not None:
        return _beside_bound(score, told, bound)
    if score.drop <= 0:
        return Finding("good", told)
    unsure = score.standard_error is not None and score.drop <= SURE * score.standard_error
    return Finding("open", f"{told}: less than {SURE} standard errors") if unsure else Finding("bad", told)


def allowed(report: Report) -> float | None:
    """Return the drop that the budget allows; None where it says nothing of the score."""
    return next((limit.value for limit in report.limits if limit.kind == "MaxDrop"), None)


def _beside_bound(score: Score, told: str, bound: float) -> Finding:
    if holds(score.drop, bound):
        return Finding("good", f"{told}, {bound:g} allowed")
    beyond = f"{told}, and {bound:g} was allowed"
    if score.standard_error is not None and score.drop - bound <= SURE * score.standard_error:
        return Finding("open", f"over the bound by less than {SURE} standard errors: {beyond}")
    return Finding("bad", f"OVER THE BOUND: {beyond}")


def lost(score: Score) -> str:
    """Return in words what a score lost or gained, with the standard error; a loss has risen or fallen."""
    name = "" if score.name == NAMELESS else f"{score.name} "
    return f"{name}{score.outcome} {score.amount(abs(score.drop))}".replace("+-", "±")


def size(report: Report) -> Finding:
    """Return what became of the bytes, or of the parameters in reports that have no bytes."""
    before, after = report.stored or (report.before.params, report.after.params)
    share = after / max(before, 1)
    if share == 1:
        return Finding("open", "as large as before")
    return Finding("good", f"{100 * (1 - share):.1f} % smaller") if share < 1 else Finding("bad", f"{share:.2f} times as large")


def time(report: Report) -> Finding | None:
    """Return what the pairs of runs say of the two times; None where they were not compared in pairs."""
    found = report.verdict
    if found is None:
        return None
    text = f"{found.word}: {found.ratio:.2f} times the original's time, 95 % interval {found.low:.2f}-{found.high:.2f}"
    kinds: dict[str, Literal["good", "bad"]] = {"faster": "good", "slower": "bad"}
    return Finding(kinds.get(found.word, "open"), text)


def same_clock(reports: Iterable[Report]) -> bool:
    """Whether times of several reports are of one runtime, version and machine."""
    return len({(str(sorted(report.target.items())), report.machine) for report in reports}) == 1


def failures(report: Report) -> list[Finding]:
    """Return what must be seen at first sight: a slower network, and bounds that do not hold."""
    found = [Finding("bad", slower(report))] if slower(report) else []
    score = deciding(report)
    if score is not None and allowed(report) is not None and score.kind != "good":
        found.append(score)
    return found + [finding for limit in report.limits for finding in _broken(limit, report)]


def slower(report: Report) -> str:
    """Return a sentence if the network is slower than the original by the paired test; else nothing."""
    if report.verdict is None or report.verdict.word != "slower":
        return ""
    return f"SLOWER: takes {report.verdict.ratio:.2f} times as long as the original{on_target(report)}"


def on_target(report: Report) -> str:
    """Return the runtime that was timed, in words; nothing in old reports."""
    return f" in {report.target['target']} {report.target['version']}" if {"target", "version"} <= set(report.target) else ""


def _broken(limit: Limit, report: Report) -> list[Finding]:
    """Return a finding if the network costs more than a bound allows."""
    if limit.kind == "MaxDrop" or (costs := _costs(limit, report)) is None:
        return []
    least, measured = costs
    if measured <= limit.value * (1 + 1e-9):
        return []
    show: Callable[[float], str] = (lambda value: f"{100 * value:.4g} %") if limit.kind == "Keep" else _amount(limit)
    told = f"{show(measured)} of {NAMES[limit.metric]}, and {show(limit.value)} was allowed"
    if least <= limit.value:
        return [Finding("open", f"over the bound by less than the measurement's error: {told}")]
    return [Finding("bad", f"OVER THE BOUND: {told}")]


def _amount(limit: Limit) -> Callable[[float], str]:
    return (lambda value: f"{value:.4g} ms") if limit.metric == "latency" else (lambda value: f"{value:,.0f}")


def _costs(limit: Limit, report: Report) -> tuple[float, float] | None:
    """Return what the network costs in a bound's unit, at least and as measured; None where it is not known."""
    if limit.metric == "latency":
        if report.verdict is None or report.latency is None:
            return None
        found, new = report.verdict, report.latency[1]
        return (found.low, found.ratio) if limit.kind == "Keep" else (new.low_ms, new.median_ms)
    pairs = {
        "params": (report.before.params, report.after.params),
        "macs": (report.before.macs, report.after.macs),
        "bytes": report.stored,
    }
    pair = pairs[limit.metric]
    if pair is None:
        return None
    cost = pair[1] / max(pair[0], 1) if limit.kind == "Keep" else float(pair[1])
    return cost, cost
