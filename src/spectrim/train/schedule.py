"""When kernels are distorted during training."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """When to distort, and how hard.

    Attributes:
        every: S_D, optimizer steps between two distortions.
        warmup: Optimizer steps before the count begins.
        growth: Each interval is this many times as long as the one before (rounded); below 1 they shorten.
        tighten: Distortions over which the ranks fall from the largest that pay to the plan's; 0 uses the plan's at once.
        replan: Distortions between two calls of the function `replan` of a `Distortion`.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> [Schedule(10, growth=2.0).interval(done) for done in range(3)]
        [10, 20, 40]
    """

    every: int = 200
    warmup: int = 0
    growth: float = 1.0
    tighten: int = 0
    replan: int = 5

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, least in (("every", 1), ("warmup", 0), ("tighten", 0), ("replan", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}")
        if not isinstance(self.growth, (int, float)) or not 0 < self.growth < math.inf:
            raise ValueError(f"growth is {self.growth!r}; it must be a number above 0, such as 1.0 for a constant interval")

    def interval(self, done: int) -> int:
        """Return the optimizer steps between the last distortion and the next one.

        Args:
            done: How many distortions there were.
        """
        return max(1, round(self.every * self.growth**done))

    def steps_needed(self) -> int:
        """Return the optimizer steps until the first distortion at the plan's own ranks."""
        return self.warmup + sum(self.interval(done) for done in range(max(1, self.tighten)))
