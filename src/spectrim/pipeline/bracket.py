"""Which budget MaxDrop tries next: inside a bracket that shrinks, where predicted harm says that the drop meets the bound.

Drops are taken for a power of the predicted harm, through the two budgets of the bracket (a secant in logarithms). Every
third budget, once one has broken the bound, is the bracket's middle, so that a prediction that misleads costs tries and
nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from spectrim.core.figures import Try
from spectrim.core.score import POINTS, holds

RESOLUTION = 1.02  # the search ends when the best budget is within this ratio of one that breaks the bound, or should be
LEAST = 0.02  # points; a drop below it is noise
SHARE = 1 / 75  # of the bound, in other units: likewise
POINTS_PER_NAT = 40.0  # before anything is measured
CUTS = 12  # of the bracket, to find the budget of a predicted harm


def noise_of(bound: float, before: float, unit: str) -> float:
    """Return the drop below which there is none.

    Args:
        bound: What may be lost, in the unit of the score.
        before: The original's score.
        unit: Its unit.
    """
    return LEAST if unit == POINTS else max(SHARE * bound, 1e-4 * abs(before), 1e-12)


class Bracket:
    """The largest kept fraction that breaks the bound, the smallest that holds it, and their drops.

    Args:
        least: Smallest fraction that any plan keeps.
        bound: What may be lost, in the unit of the score.
        nats: Whether predicted harms are nats and the unit is points, so that a first guess can be made.
        noise: A drop below it is none.
    """

    def __init__(self, least: float, bound: float, *, nats: bool, noise: float = LEAST) -> None:
        """Store the arguments."""
        self.low, self.high, self.bound, self.noise = least, 1.0, bound, noise
        self.broke: tuple[float, float] | None = None  # predicted harm and drop at `low`
        self.held: tuple[float, float] | None = None  # at `high`
        self.nats, self.tries = nats, 0

    def begin(self, found: Try) -> None:
        """Take in a budget that is known to hold the bound from elsewhere, with its plan's harm and drop."""
        self.high, self.held = found.kept, (found.harm, found.drop)

    def add(self, keep: float, kept: float, harm: float, drop: float) -> bool:
        """Take in what a budget gave; return whether it holds the bound.

        Args:
            keep: Budget.
            kept: Fraction that its plan keeps, at most `keep`.
            harm: Predicted.
            drop: Measured, in the unit of the bound.
        """
        self.tries += 1
        if holds(drop, self.bound):
            self.high, self.held = min(keep, kept), (harm, drop)
            return True
        self.low, self.broke = keep, (harm, drop)
        return False

    def next(self, predict: Callable[[float], float]) -> float | None:
        """Return the budget to try, or None when that is not worth it.

        Args:
            predict: From a budget to the harm that its plan predicts; falls with the budget.
        """
        if self.high / self.low <= RESOLUTION:
            return None
        middle = math.sqrt(self.low * self.high)
        wanted = self._harm()
        if wanted is None or (self.tries % 3 == 2 and self.broke is not None):
            return middle
        low, high = self.low, self.high
        for _ in range(CUTS):
            guess = math.sqrt(low * high)
            low, high = (guess, high) if predict(guess) > wanted else (low, guess)
        if self.held is not None and high >= self.high / RESOLUTION:
            return None if self.held[1] > self.noise else middle
        margin = float(min(RESOLUTION**0.5, (self.high / self.low) ** 0.1))
        return min(self.high / margin, max(self.low * margin, high))

    def _harm(self) -> float | None:
        """Return the predicted harm at which the drop is expected to meet the bound."""
        held = self.held if self.held is not None and self.held[1] > self.noise and self.held[0] > 0 else None
        if held is None and self.broke is None:
            return self.bound / POINTS_PER_NAT if self.nats and self.held is None else None
        power = 1.0
        if held is not None and self.broke is not None and self.broke[0] > held[0]:
            power = math.log(self.broke[1] / held[1]) / math.log(self.broke[0] / held[0])
        harm, drop = held or self.broke or (0.0, 1.0)
        return float(harm * (max(self.bound, self.noise) / drop) ** (1 / min(4.0, max(0.25, power))))
