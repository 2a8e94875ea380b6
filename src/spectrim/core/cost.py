"""What is counted, in which unit, and how much of it may remain.

MACs count one multiply-add of one forward of one example. "Kept" is the fraction that remains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Metric = Literal["params", "macs"]
METRICS: tuple[Metric, ...] = ("params", "macs")


class BudgetError(ValueError):
    """The budget cannot be met by anything the menu offers."""


@dataclass(frozen=True)
class Cost:
    """Parameters, and multiply-adds of one forward of one example."""

    params: int
    macs: int

    def __add__(self, other: Cost) -> Cost:
        """Return the sum, field by field."""
        return Cost(self.params + other.params, self.macs + other.macs)

    def __sub__(self, other: Cost) -> Cost:
        """Return the difference, field by field."""
        return Cost(self.params - other.params, self.macs - other.macs)

    def of(self, metric: Metric) -> int:
        """Return the field that `metric` names."""
        return self.params if metric == "params" else self.macs


def check_metric(metric: str) -> None:
    """Raise a ValueError if there is no such metric."""
    if metric not in METRICS:
        raise ValueError(f"metric is {metric!r}; allowed are 'params' and 'macs'")


@dataclass(frozen=True)
class Keep:
    """A hard bound: at most this fraction of the whole network's cost may remain.

    Args:
        fraction: What may remain, in (0, 1]; the whole network counts, uncompressible layers included.
        metric: `"params"` or `"macs"`.

    Raises:
        ValueError: If the fraction is not in (0, 1] or the metric is unknown.
    """

    fraction: float
    metric: Metric = "macs"

    def __post_init__(self) -> None:
        """Check the values."""
        check_metric(self.metric)
        if not isinstance(self.fraction, (int, float)) or not 0 < self.fraction <= 1:
            raise ValueError(f"Keep was given {self.fraction!r}; allowed is a fraction in (0, 1], such as 0.5 for half")

    def __str__(self) -> str:
        """Return the budget as written in code."""
        return f"Keep({self.fraction:g}, {self.metric!r})"


@dataclass(frozen=True)
class MaxDrop:
    """The most compression whose score stays within this many points of the original's.

    Args:
        points: Allowed drop in points: 1.5 means 0.015 of a score between 0 and 1.
        metric: What to make small, `"params"` or `"macs"`.

    Raises:
        ValueError: If the points are negative or not finite, or the metric is unknown.
    """

    points: float
    metric: Metric = "macs"

    def __post_init__(self) -> None:
        """Check the values."""
        check_metric(self.metric)
        if not (isinstance(self.points, (int, float)) and math.isfinite(self.points) and 0 <= self.points < 100):
            raise ValueError(f"MaxDrop was given {self.points!r}; allowed are points in [0, 100), such as 1.5")

    def __str__(self) -> str:
        """Return the budget as written in code."""
        return f"MaxDrop({self.points:g}, {self.metric!r})"


Budget = Keep | MaxDrop
