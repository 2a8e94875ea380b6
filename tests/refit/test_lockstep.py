"""Chunks that wait for each other: one at a time, as the caller says, and none is left when it is over."""

import random
import sys
import threading
import time
from pathlib import Path

import pytest

from spectrim.refit.lockstep import LockStep
from spectrim.targets import memory


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:  # counted as ended a moment before they are
        thread.join(1)
    assert set(threading.enumerate()) <= before


@pytest.fixture(params=[1e-6, 5e-3])
def _switching(request):
    """Let the interpreter switch threads very often, or hardly ever."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(request.param)
    yield
    sys.setswitchinterval(usual)


def run(order, count, rounds, pause=lambda: None):
    """Run chunks that write a line before each wait; return what was written and what `advance` gave."""
    written, running = [], []

    def work(chunk):
        for step in range(rounds):
            running.append(chunk)
            pause()
            written.append((chunk, step))
            pause()
            assert running.pop() == chunk and not running  # no other is running meanwhile
            steps.wait(chunk, (chunk, step))

    steps = LockStep(count, work)
    given = [steps.advance(chunk) for chunk in order]
    steps.close()
    return written, given


@pytest.mark.usefixtures("_switching")
@pytest.mark.parametrize("seed", range(3))
def test_chunks_run_in_the_order_asked_whatever_the_scheduler_does(seed):
    generator = random.Random(seed)
    order = [generator.randrange(4) for _ in range(30)]
    steps = {chunk: 0 for chunk in range(4)}
    wanted = []
    for chunk in order:
        wanted.append((chunk, steps[chunk]))
        steps[chunk] += 1
    written, given = run(order, 4, 40, lambda: time.sleep(generator.choice([0, 0, 1e-4])))
    assert written == given == wanted


def test_a_chunk_that_has_ended_gives_nothing():
    written, given = run([0, 0, 1, 0, 0], 2, 2)
    assert given == [(0, 0), (0, 1), (1, 0), None, None] and written == [(0, 0), (0, 1), (1, 0)]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_in_one_chunk_reaches_the_caller_and_the_others_end(kind):
    ended = []

    def work(chunk):
        try:
            steps.wait(chunk, chunk)
            if chunk == 1:
                raise kind("chunk 1")
            steps.wait(chunk, chunk)
        finally:
            ended.append(chunk)

    steps = LockStep(3, work)
    assert [steps.advance(chunk) for chunk in range(3)] == [0, 1, 2]
    assert steps.advance(0) == 0
    with pytest.raises(kind, match="chunk 1"):
        steps.advance(1)
    assert ended == [1]
    steps.close()
    assert sorted(ended) == [0, 1, 2]
    assert steps.error is not None


def test_closing_early_ends_every_chunk_and_one_that_never_began():
    begun, ended = [], []

    def work(chunk):
        begun.append(chunk)
        try:
            steps.wait(chunk, chunk)
        finally:
            ended.append(chunk)

    steps = LockStep(3, work)
    assert steps.advance(2) == 2 and steps.advance(0) == 0
    steps.close()
    assert begun == [2, 0] and sorted(ended) == [0, 2]
    steps.close()  # a second time there is nothing to do


def test_a_chunk_may_clean_up_slowly():
    done = threading.Event()

    def work(chunk):
        try:
            steps.wait(chunk, "message")
        finally:
            time.sleep(0.3)
            done.set()

    steps = LockStep(1, work)
    assert steps.advance(0) == "message"
    steps.close()
    assert done.is_set()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell how much memory is in use")
def test_what_waiting_chunks_have_freed_is_given_back(monkeypatch):
    """Each thread keeps what it has freed behind a piece that is in use: 16 chunks would keep 16 times 32 MiB."""
    monkeypatch.setattr(memory, "ROOM", 1 << 26)

    def work(chunk):
        pieces = [bytes(1 << 14) for _ in range(1 << 11)]  # too small to be mapped on their own
        last = pieces.pop()
        pieces.clear()
        steps.wait(chunk, last)

    before = memory.resident()
    steps = LockStep(16, work)
    for chunk in range(16):
        steps.advance(chunk)
    assert memory.resident() - before < 1 << 28
    steps.close()
