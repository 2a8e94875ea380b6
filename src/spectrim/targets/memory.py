"""Memory of this process: the peak of a session, where the system tells it, and what is given back."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path

from spectrim.targets.base import Session

PROCESS = Path("/proc/self")
ROOM = 1 << 28  # bytes that a process may grow by before what is free in it is given back


def peak(session: Session) -> int | None:
    """Return the bytes that making a network ready to run from its file, and one forward, add at most to this process.

    What the process had freed before is given back to the system first, so that it counts when it is used again.

    Args:
        session: Made anew for this, beside itself.

    Returns:
        Bytes, of whole pages; None where the system does not tell (all but Linux), and on GPUs.
    """
    if session.fresh is None:
        return None
    gc.collect()
    give_back()
    try:
        (PROCESS / "clear_refs").write_text("5")  # the peak starts anew
        before = _status("VmRSS")
        forward = session.fresh()
        forward()
        return max(_status("VmHWM") - before, 0)
    except (OSError, AttributeError, TypeError):
        return None


def give_back() -> None:
    """Give memory that is free back to the system, where the C library can (glibc).

    It keeps, in pieces, what a pass over many images has freed: of 2.8 GiB after statistics and menu of a MobileNetV2 on
    192 images at 224 pixels 1.3 were in use.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


class Heap:
    """Gives free memory back whenever the process has grown: many threads, one at a time, each keep what they have freed."""

    def __init__(self) -> None:
        """Take the memory as it is for a start."""
        self.least = resident()

    def tidy(self) -> None:
        """Give free memory back, if the process has grown by more than `ROOM` since the last time."""
        if resident() > self.least + ROOM:
            give_back()
            self.least = resident()


def resident() -> int:
    """Return how many bytes this process has in memory; nothing where the system does not tell."""
    try:
        return _status("VmRSS")
    except (OSError, IndexError, ValueError):
        return 0


def _status(name: str) -> int:
    """Return a number of bytes that the system tells of this process."""
    return 1024 * int((PROCESS / "status").read_text().split(f"{name}:")[1].split()[0])
