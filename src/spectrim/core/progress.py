"""What long work tells while it runs, and what it took when it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Progress = Callable[[str, float], None]  # called with the name of a stage and the share of it that is done, 0 to 1


@dataclass(frozen=True)
class Spent:
    """What a step took, work of an interrupted run that it went on from included.

    Attributes:
        seconds: Wall-clock seconds by stage.
        passes: Passes over the calibration images by direction, `forward` and `backward`.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    passes: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: Spent) -> Spent:
        """Return what both took together."""
        return Spent(_added(self.seconds, other.seconds, 1.0), _added(self.passes, other.passes, 1.0))

    def __sub__(self, other: Spent) -> Spent:
        """Return what this took beyond the other."""
        return Spent(_added(self.seconds, other.seconds, -1.0), _added(self.passes, other.passes, -1.0))


def _added(first: Mapping[str, float], second: Mapping[str, float], sign: float) -> dict[str, float]:
    return {name: first.get(name, 0.0) + sign * second.get(name, 0.0) for name in dict.fromkeys((*first, *second))}
