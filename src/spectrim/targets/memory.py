"""Peak memory of a session, where the system tells it."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

from spectrim.targets.base import Session

PROCESS = Path("/proc/self")


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
    try:
        ctypes.CDLL(None).malloc_trim(0)
        (PROCESS / "clear_refs").write_text("5")  # the peak starts anew
        before = _status("VmRSS")
        forward = session.fresh()
        forward()
        return max(_status("VmHWM") - before, 0)
    except (OSError, AttributeError, TypeError):
        return None


def _status(name: str) -> int:
    """Return a number of bytes that the system tells of this process."""
    return 1024 * int((PROCESS / "status").read_text().split(f"{name}:")[1].split()[0])
