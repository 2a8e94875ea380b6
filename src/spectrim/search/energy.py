"""Equal relative energy: every layer loses the same share of its kernel's squared singular values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from spectrim.core.cost import Keep
from spectrim.core.menu import Menu
from spectrim.core.search import Probe, Search
from spectrim.search.level import equal_level


@dataclass(frozen=True)
class Energy(Search):
    """One threshold for all layers: on the relative squared error of the weight, or of the output.

    Args:
        score: `energy`: of the weight. `whitened`: of the output, on calibration data.

    Raises:
        ValueError: If the score is another.

    Reference:
        Zhang et al. 2016 (section 3.3) and common practice.
    """

    title: ClassVar[str] = "Energy"
    reference: ClassVar[str] = "Zhang et al. 2016, section 3.3"
    score: str = "energy"

    def __post_init__(self) -> None:
        """Check the score."""
        if self.score not in ("energy", "whitened"):
            raise ValueError(f"Energy was given score={self.score!r}; allowed are 'energy' and 'whitened'")

    def select(self, menu: Menu, budget: Keep, probe: Probe | None = None) -> list[int]:
        """Return the choice of the lowest threshold that meets the budget."""
        return equal_level(menu, budget, self.score)
