"""What is counted, in which unit, and how much of it may remain.

MACs count one multiply-add of one forward of one example. Bytes are those of parameters and buffers as they are stored. Latency
is the time of one forward of the example on the target, in nanoseconds where it is counted and in milliseconds where a user
says it. "Kept" is the fraction that remains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Metric = Literal["params", "macs", "bytes", "latency"]
METRICS: tuple[Metric, ...] = ("params", "macs", "bytes", "latency")
COUNTED: tuple[Metric, ...] = ("params", "macs")  # those that a `Cost` has; the others depend on more than shapes
NANOSECONDS = 1_000_000  # of a millisecond


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
        """Return the field that `metric` names.

        Raises:
            ValueError: If it names none; bytes and latency depend on more than shapes, and are columns of a `Menu`.
        """
        if metric not in COUNTED:
            raise ValueError(
                f"a Cost has no {metric!r}; allowed are 'params' and 'macs', and a menu has what else it was priced in"
            )
        return self.params if metric == "params" else self.macs


def check_metric(metric: str) -> None:
    """Raise a ValueError if there is no such metric."""
    if metric not in METRICS:
        raise ValueError(f"metric is {metric!r}; allowed are {', '.join(map(repr, METRICS[:-1]))} and {METRICS[-1]!r}")


@dataclass(frozen=True)
class Keep:
    """A hard bound: at most this fraction of the whole network's cost may remain.

    Args:
        fraction: What may remain, in (0, 1]; the whole network counts, uncompressible layers included.
        metric: `"params"`, `"macs"`, `"bytes"` or `"latency"` (of `Config.target`).

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
class AtMost:
    """A hard bound: the whole network may cost at most so much.

    Args:
        value: Parameters, MACs of one example, bytes of parameters and buffers, or milliseconds of one forward of the example.
        metric: `"params"`, `"macs"`, `"bytes"` or `"latency"` (of `Config.target`).

    Raises:
        ValueError: If the value is not positive and finite, or the metric is unknown.

    Example:
        >>> print(AtMost(4e6, "bytes"))
        AtMost(4000000, 'bytes')
    """

    value: float
    metric: Metric

    def __post_init__(self) -> None:
        """Check the values."""
        check_metric(self.metric)
        if not (isinstance(self.value, (int, float)) and math.isfinite(self.value) and self.value > 0):
            raise ValueError(
                f"AtMost was given {self.value!r}; allowed are positive numbers, such as 4e6 for bytes or 25 for ms"
            )

    def __str__(self) -> str:
        """Return the budget as written in code."""
        value = int(self.value) if self.value == int(self.value) else self.value
        return f"AtMost({value!r}, {self.metric!r})"


@dataclass(frozen=True)
class MaxDrop:
    """The most compression whose score stays within so much of the original's.

    Args:
        points: Allowed drop: in points of a score that is a fraction, where 1.5 means 0.015; else in the unit of the score
            (`Measurement`), 0.3 dB, say. Of a loss it is the allowed rise.
        metric: What to make small, `"params"`, `"macs"`, `"bytes"` or `"latency"`.

    Raises:
        ValueError: If the drop is negative or not finite, or the metric is unknown.
    """

    points: float
    metric: Metric = "macs"

    def __post_init__(self) -> None:
        """Check the values."""
        check_metric(self.metric)
        if not (isinstance(self.points, (int, float)) and math.isfinite(self.points) and self.points >= 0):
            raise ValueError(f"MaxDrop was given {self.points!r}; allowed are numbers of at least 0, such as 1.5 points")

    def __str__(self) -> str:
        """Return the budget as written in code."""
        return f"MaxDrop({self.points:g}, {self.metric!r})"


Bound = Keep | AtMost
Budget = Bound | MaxDrop | Sequence[Bound]


def bounds_of(budget: Any) -> tuple[Bound, ...]:
    """Return the hard bounds that a budget consists of: itself, or all of a list.

    Raises:
        TypeError: If it is, or holds, something else.
    """
    bounds = tuple(budget) if isinstance(budget, (list, tuple)) else (budget,)
    if not bounds or not all(isinstance(bound, (Keep, AtMost)) for bound in bounds):
        raise TypeError(
            f"the budget is {budget!r}; it must be Keep(fraction, metric), AtMost(value, metric) or a list of these"
        )
    return bounds


def written(budget: Budget) -> str:
    """Return a budget as written in code; of several one after the other."""
    return " and ".join(map(str, budget)) if isinstance(budget, (list, tuple)) else str(budget)


def limit_of(bound: Bound, whole: int) -> int:
    """Return what a bound allows the whole network to cost, in the metric's own unit (nanoseconds of latency).

    Args:
        bound: The bound.
        whole: What the original network costs.
    """
    if isinstance(bound, Keep):
        return int(bound.fraction * whole + 1e-9)
    return int(bound.value * (NANOSECONDS if bound.metric == "latency" else 1) + 1e-9)
