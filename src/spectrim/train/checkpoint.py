"""The file that an interrupted training goes on from, and an interruption that waits for the end of a step."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

FORMAT = "spectrim-training-3"


def save(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write a state of tensors, numbers and text; the file is whole or not there."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    torch.save({"format": FORMAT, **state}, partial)
    partial.replace(target)


def load(path: str | os.PathLike[str], identity: Mapping[str, Any], device: torch.device) -> dict[str, Any] | None:
    """Read a state that `save` wrote.

    Args:
        path: The file.
        identity: What must be the same for a run to go on, by name: compared to the state's `identity`.
        device: Where the tensors go.

    Returns:
        The state, or None if there is no such file.

    Raises:
        ValueError: If the file is of another version or of another run.
    """
    if not Path(path).is_file():
        return None
    state = torch.load(path, map_location=device, weights_only=True)
    given = state.get("format") if isinstance(state, dict) else None
    if given != FORMAT:
        raise ValueError(
            f"the checkpoint {str(path)!r} has the format {given!r} and this version reads {FORMAT!r}; remove it to begin anew"
        )
    others = [name for name, value in identity.items() if state["identity"].get(name) != value]
    if others:
        raise ValueError(f"the checkpoint {str(path)!r} is of another run (other {', '.join(others)}); remove it to begin anew")
    return dict(state)


class Interruption:
    """Whether someone has pressed Ctrl-C, which waits for the end of the step, so that a whole state is saved.

    Attributes:
        requested: Whether it was pressed; a second time does not wait.
    """

    def __init__(self) -> None:
        """Begin without."""
        self.requested = False

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        """Remember an interrupt in place of raising it at once; only in the main thread, which gets the signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._remember)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _remember(self, number: int, frame: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
