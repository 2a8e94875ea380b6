"""Time of sessions: run in turn, so that a drift of the machine hits all alike, and what the pairs of runs say."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from spectrim.core.bench import Latency, Verdict
from spectrim.targets.base import Clock, Session

CLOCKS: tuple[Clock, ...] = ("process", "wall")  # the columns of what `interleaved` returns
LEAST_PAIRS = 6  # of fewer there is no 95 % interval of the median


def interleaved(sessions: Sequence[Session], *, seconds: float = 1.5, least: int = LEAST_PAIRS) -> list[np.ndarray]:
    """Run several sessions one after the other in turn, after two runs each to warm up.

    Args:
        sessions: What to compare.
        seconds: About how long to measure, per session.
        least: Runs of each at least.

    Returns:
        For each session an array (runs, 2) of milliseconds: CPU time of this process, and that of the wall (`CLOCKS`). Rows of
        one number belong together: paired samples.

    Example:
        >>> fast, slow = (Session(lambda number=number: sum(range(number)), 0) for number in (10, 200_000))
        >>> first, second = interleaved([fast, slow], seconds=0)
        >>> first.shape, bool(np.median(first[:, 0]) < np.median(second[:, 0]))
        ((6, 2), True)
    """
    for session in (*sessions, *sessions):
        session.run()
    rounds: list[list[tuple[float, float]]] = []
    start = time.perf_counter()
    while len(rounds) < least or time.perf_counter() - start < seconds * len(sessions):
        rounds.append([_timed(session) for session in sessions])
    return list(1000 * np.array(rounds).transpose(1, 0, 2))


def _timed(session: Session) -> tuple[float, float]:
    """Return the seconds of one run: CPU time of this process, and of the wall."""
    wall, process = time.perf_counter(), time.process_time()
    session.run()
    return time.process_time() - process, time.perf_counter() - wall


def latency(times: np.ndarray, threads: int, clock: Clock = "process") -> Latency:
    """Return median and quartiles of what `interleaved` gave for one session.

    Args:
        times: Milliseconds, (runs, 2).
        threads: CPU threads that were used.
        clock: Which column counts.
    """
    low, median, high = np.quantile(times[:, CLOCKS.index(clock)], (0.25, 0.5, 0.75))
    return Latency(float(median), float(low), float(high), len(times), threads, clock)


def verdict(original: np.ndarray, other: np.ndarray, clock: Clock = "process") -> Verdict:
    """Compare two sessions by their pairs of runs: median of the ratios, and its interval by the sign test.

    Args:
        original: Milliseconds of the first, (runs, 2), at least six.
        other: Of the second, from the same call of `interleaved`.
        clock: Which column counts.

    Example:
        >>> times = np.linspace(1, 2, 40)[:, None].repeat(2, 1)
        >>> verdict(times, 1.5 * times)
        Verdict(ratio=1.5, low=1.5, high=1.5, pairs=40)
    """
    from scipy import stats  # slow to import

    column = CLOCKS.index(clock)
    ratios = other[:, column] / np.maximum(original[:, column], 1e-9)
    interval = stats.quantile_test(ratios, q=1, p=0.5).confidence_interval(0.95)
    return Verdict(float(np.median(ratios)), float(interval.low), float(interval.high), len(ratios))
