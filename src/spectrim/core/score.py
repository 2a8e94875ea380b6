"""Scores: what a user's evaluate measured of one network, and two of these compared, each in its own unit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

POINTS = "points"  # the unit of fractions, such as accuracies: hundredths


@dataclass(frozen=True, eq=False)
class Measurement:
    """One score of one network, as `evaluate` may return it in place of a plain number.

    Args:
        value: The score; or the score of every example, (N,), whose mean it is: drops then have a standard error.
        name: What it is called in the report.
        unit: Such as `"dB"`, `"nats"` or `"%"`, or `""` for a bare number; drops are in it. `"points"` says that the value is a
            fraction between 0 and 1, and that drops are hundredths. None: points where larger is better and the original's is
            at most 1, else bare.
        larger_is_better: False for a loss, an error or a perplexity.

    Raises:
        TypeError: If the name or the unit is no string, or larger_is_better no truth value.

    Example:
        >>> loss = Measurement(0.4512, "loss", "nats", larger_is_better=False)
        >>> loss.unit
        'nats'
    """

    value: float | Tensor
    name: str = "score"
    unit: str | None = None
    larger_is_better: bool = True

    def __post_init__(self) -> None:
        """Check the kinds."""
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"the name of a score is {self.name!r}; it must be a string, such as 'mAP'")
        if not isinstance(self.unit, str | None):
            raise TypeError(f"the unit of {self.name} is {self.unit!r}; it must be a string, such as 'dB', or None")
        if not isinstance(self.larger_is_better, bool):
            raise TypeError(f"larger_is_better of {self.name} is {self.larger_is_better!r}; it must be True or False")

    @property
    def mean(self) -> float:
        """The score."""
        return float(self.value.mean()) if isinstance(self.value, Tensor) else self.value

    @property
    def undeclared(self) -> bool:
        """Whether nobody said what the number is, and it is no fraction either."""
        return self.unit is None and self.larger_is_better and abs(self.mean) > 1

    @property
    def shown_unit(self) -> str:
        """The unit, also where none was given."""
        if self.unit is not None:
            return self.unit
        return POINTS if self.larger_is_better and not self.undeclared else ""


@dataclass(frozen=True)
class Score:
    """One score before and after, and what was lost in its own unit.

    Attributes:
        before, after: As evaluate gave them.
        standard_error: Of `drop`, in its unit, paired over the examples; None where evaluate gives one number for all.
        examples: How many; None likewise.
        name: Such as `top-1`.
        unit: Of `drop`: `points` if the score is a fraction, which is shown times 100; else that of the score itself.
        larger_is_better: False for a loss.
        also: Scores that were measured at the same time; this one decides.

    Raises:
        ValueError: If the unit is points and the score before is above 1.
    """

    before: float
    after: float
    standard_error: float | None = None
    examples: int | None = None
    name: str = "score"
    unit: str = POINTS
    larger_is_better: bool = True
    also: tuple[Score, ...] = ()

    def __post_init__(self) -> None:
        """Check that a score in points is a fraction."""
        if self.unit == POINTS and abs(self.before) > 1:
            raise ValueError(f"the {self.name} before is {self.before:g}; with the unit 'points' it must be a fraction up to 1")

    @property
    def every(self) -> tuple[Score, ...]:
        """The deciding score, and those measured at the same time."""
        return (self, *self.also)

    @property
    def scale(self) -> int:
        """What the score is shown times: 100 for a fraction, else 1."""
        return 100 if self.unit == POINTS else 1

    @property
    def drop(self) -> float:
        """By how much it became worse, in its unit; for a loss by how much it rose."""
        return self.scale * (self.before - self.after) * (1 if self.larger_is_better else -1)

    @property
    def direction(self) -> str:
        """What `drop` is called: a drop, or the rise of what should be small."""
        return "drop" if self.larger_is_better else "rise"

    @property
    def outcome(self) -> str:
        """What became of it by so much as `drop` says: lost or gained, or risen or fallen."""
        words = ("lost", "gained") if self.larger_is_better else ("risen", "fallen")
        return words[self.drop < 0]

    def number(self, value: float) -> str:
        """Return a number that is in this unit already, with as many decimals as scores of this size need."""
        size = max(abs(self.before), abs(self.after)) if self.scale == 1 else 0.0
        decimals = 2 if not 0 < size < math.inf else min(8, max(2, 3 - math.floor(math.log10(size))))
        return f"{value:.{decimals}f}"

    def shown(self) -> tuple[str, str]:
        """Return the score before and after."""
        return self.number(self.scale * self.before), self.number(self.scale * self.after)

    def amount(self, value: float) -> str:
        """Return a number with its standard error, if there is one, and its unit."""
        error = "" if self.standard_error is None else f" +- {self.number(self.standard_error)}"
        return f"{self.number(value)}{error} {self.unit}".rstrip()

    def lost(self) -> str:
        """Return what a network does that has this score: it loses points, say, or raises a loss."""
        much = f"{self.number(self.drop)} {self.unit}".rstrip()
        return f"loses {much}" if self.larger_is_better else f"raises {self.name} by {much}"

    def text(self) -> str:
        """Return the three numbers in words."""
        count = "" if self.examples is None else f", {self.examples:,} images"
        before, after = self.shown()
        unit = "" if self.unit == POINTS else f" {self.unit}".rstrip()
        return f"{before} -> {after}{unit} ({self.direction} {self.amount(self.drop)}{count})"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, and the drop beside them."""
        data = asdict(self) | {"drop": self.drop}
        return data | {"also": [score.as_dict() for score in self.also]}


def holds(drop: float, bound: float) -> bool:
    """Return whether a drop is within the bound, but for rounding."""
    return drop <= bound * (1 + 1e-9) + 1e-12


def with_units(score: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return a score of schema 2 or older as the present schema has it: points if it was a fraction, else a bare number."""
    if score is None:
        return None
    return {**score, "unit": POINTS if abs(score["before"]) <= 1 else ""}
