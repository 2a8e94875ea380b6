"""Sessions take turns, and their verdict is that of the pairs of runs."""

import time

import numpy as np
import pytest

from spectrim.core.bench import LEAST, Latency
from spectrim.targets.base import Session
from spectrim.targets.timing import CLOCKS, LOADS, interleaved, latency, verdict


def working(milliseconds, calls, clock=time.process_time):
    """A session that works, or only waits, for so long and notes when it was called."""

    def forward():
        calls.append(milliseconds)
        start = clock()
        while clock() - start < milliseconds / 1000:
            pass
        return []

    return Session(forward, 0)


@pytest.mark.parametrize("seconds", [0, 0.02])
def test_sessions_take_turns_there_and_back_and_are_made_anew(seconds):
    calls, made = [], []

    def again():
        made.append(len(calls))
        return working(0.2, calls).forward

    sessions = [working(0.1, calls), Session(working(0.2, calls).forward, 0, fresh=again), working(0.3, calls)]
    found = interleaved(sessions, seconds=seconds, least=12)
    runs = len(found[0])
    assert {times.shape for times in found} == {(runs, 2)} and runs >= 12 and len(made) == LOADS - 1
    assert len(calls) == 3 * (runs + LOADS) and calls[:9] == [0.1, 0.2, 0.3] * 2 + [0.3, 0.2, 0.1]
    assert (np.median(np.stack(found)[:, :, 0], 1) >= (0.1, 0.2, 0.3)).all()  # each row is of its session


def test_waiting_is_time_of_the_wall_only():
    times = interleaved([Session(lambda: time.sleep(0.02), 0)], seconds=0)[0]
    process, wall = np.median(times, 0)
    assert CLOCKS == ("process", "wall") and wall >= 20 > 2 * process


@pytest.mark.parametrize("clock", CLOCKS)
def test_medians_and_quartiles_are_of_the_clock_that_counts(clock):
    times = np.stack([np.arange(101.0), 3 * np.arange(101.0)], 1)
    factor = {"process": 1, "wall": 3}[clock]
    assert latency(times, 2, clock) == Latency(50 * factor, 25 * factor, 75 * factor, 101, 2, clock)


@pytest.mark.parametrize(
    ("ratio", "noise", "word"),
    [
        (0.7, 0.1, "faster"),
        (1.4, 0.1, "slower"),
        (1.0, 0.1, "no difference found"),
        (1 + LEAST / 2, 1e-4, "no difference found"),
    ],
)
def test_the_verdict_sees_through_a_drift_that_hits_both(ratio, noise, word):
    generator = np.random.default_rng(0)
    drift = np.exp(np.linspace(0, 3, 200))[:, None].repeat(2, 1)  # each alone: quartiles that overlap
    first, second = (drift * np.exp(noise * generator.standard_normal((200, 2))) for _ in range(2))
    found = verdict(first, ratio * second)
    assert found.word == word and found.low <= found.ratio <= found.high and found.pairs == 200
    assert found.ratio == pytest.approx(ratio, rel=3 * noise / 200**0.5 * 2**0.5 * 1.3)


def test_the_interval_holds_the_median_as_often_as_it_says():
    generator, hits = np.random.default_rng(0), 0
    for _ in range(200):
        first, second = np.exp(generator.standard_normal((2, 30, 2)))
        found = verdict(first, second)
        hits += found.low <= 1 <= found.high
    assert hits >= 183  # at 95 % one run in 200 tests would have fewer


def test_six_pairs_are_the_fewest():
    times = np.ones((6, 2))
    assert np.isfinite(verdict(times, 2 * times).high)
