"""Several runs of one piece of code that wait for each other: a thread for each chunk of the data, one running at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from spectrim.targets.memory import Heap


class Stopped(BaseException):
    """The chunk is no longer wanted: another one failed, or the work was interrupted."""


class LockStep:
    """Chunks that run until they wait, one at a time, as the caller says; so results do not depend on the scheduler.

    Args:
        count: How many chunks.
        work: Run for each chunk in a thread of its own; it may call `wait`.
    """

    def __init__(self, count: int, work: Callable[[int], None]) -> None:
        """Begin nothing yet."""
        self.changed = threading.Condition()
        self.running: int | None = None
        self.stopped = False
        self.error: BaseException | None = None
        self.messages: dict[int, Any] = {}
        self.finished: set[int] = set()
        self.work = work
        self.heap = Heap()
        self.threads = [
            threading.Thread(target=self._body, args=(chunk,), name=f"chunk {chunk}", daemon=True) for chunk in range(count)
        ]

    def advance(self, chunk: int) -> Any:
        """Let a chunk go on until it waits again, and return what it waits with; None once it has ended.

        Raises:
            BaseException: What the chunk has raised.
        """
        with self.changed:
            if chunk in self.finished:
                return None
            self.running = chunk
            if self.threads[chunk].ident is None:
                self.threads[chunk].start()
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.running is None)
            self.heap.tidy()
            if self.error is not None:
                raise self.error
            return self.messages.pop(chunk, None)

    def wait(self, chunk: int, message: Any) -> None:
        """Hand over to the caller of `advance`, with something for it; called in the chunk's own thread.

        Raises:
            Stopped: If the chunk is not to go on.
        """
        with self.changed:
            self.messages[chunk] = message
            self.running = None
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.running == chunk or self.stopped)
            if self.stopped:
                raise Stopped

    def close(self) -> None:
        """End all chunks and wait until their threads have finished, also when interrupted meanwhile.

        With a thread still inside torch the interpreter would abort at its end. After an interrupted `join` Python takes a
        running thread for a stopped one (bpo-45274), so they are counted here.
        """
        with self.changed:
            self.stopped = True
            self.changed.notify_all()
        while self._going():
            with contextlib.suppress(KeyboardInterrupt), self.changed:
                self.changed.wait(0.2)
        for thread in self.threads:
            if thread.ident is not None:
                with contextlib.suppress(KeyboardInterrupt):
                    thread.join(1)  # it has nothing left to do

    def _going(self) -> bool:
        return any(thread.ident is not None and chunk not in self.finished for chunk, thread in enumerate(self.threads))

    def _body(self, chunk: int) -> None:
        error: BaseException | None = None
        try:
            self.work(chunk)
        except Stopped:
            pass
        except BaseException as caught:
            error = caught
        with self.changed:
            self.error = self.error or error
            self.finished.add(chunk)
            self.running = None
            self.changed.notify_all()
