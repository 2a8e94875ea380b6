"""Time of sessions: run in turn, so that a drift of the machine hits all alike, and what the pairs of runs say."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from spectrim.core.bench import Latency, Verdict
from spectrim.targets.base import Clock, Session

CLOCKS: tuple[Clock, ...] = ("process", "wall")  # the columns of what `interleaved` returns
LOADS = 4  # one network loaded twice differs by up to 3.4 % in ONNX Runtime, by where its weights lie in memory


def interleaved(sessions: Sequence[Session], *, seconds: float = 1.5, least: int = 2 * LOADS) -> list[np.ndarray]:
    """Run several sessions in turn, there and back, so that each comes as often behind each neighbour.

    They are made anew from their files four times, with a run to warm up: where a network's weights happen to lie in memory
    would decide more than many pairs of runs can put right.

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
        ((8, 2), True)
    """
    rounds: list[list[tuple[float, float]]] = []
    for load in range(LOADS):
        forwards = [each.forward if each.fresh is None or not load else each.fresh() for each in sessions]
        for forward in forwards:
            forward()
        begun, start, share = len(rounds), time.perf_counter(), seconds * len(sessions) / LOADS
        while LOADS * (len(rounds) - begun) < least or time.perf_counter() - start < share:
            rounds.append(_round(forwards, backward=len(rounds) % 2 == 1))
    return list(1000 * np.array(rounds).transpose(1, 0, 2))


def _round(forwards: Sequence[Callable[[], Any]], *, backward: bool) -> list[tuple[float, float]]:
    """Return the times of one run of each, in the order of `forwards`."""
    taken = [_timed(forward) for forward in (forwards[::-1] if backward else forwards)]
    return taken[::-1] if backward else taken


def _timed(forward: Callable[[], Any]) -> tuple[float, float]:
    """Return the seconds of one run: CPU time of this process, and of the wall."""
    wall, process = time.perf_counter(), time.process_time()
    forward()
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
