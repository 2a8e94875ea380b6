"""Greedy with equal accuracy: every layer may cost the same, measured alone (AIMET)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from spectrim.core.cost import Keep
from spectrim.core.menu import Menu
from spectrim.core.search import Probe, Search
from spectrim.search.level import equal_level


@dataclass(frozen=True)
class Greedy(Search):
    """Measure the network with one layer compressed, for some ten ranks of every layer; then one level for all layers.

    Each layer takes its cheapest option whose measured harm is within the level, and the level is bisected to the budget.
    AIMET measures accuracy; this measures the harm on calibration images, which needs no labels.

    Reference:
        AIMET's greedy compression-ratio selection (Siddegowda et al. 2022, arXiv 2201.08442); equal accuracy as in Kuzmin et
        al. 2019 (arXiv 1912.09802).
    """

    title: ClassVar[str] = "Greedy"
    reference: ClassVar[str] = "Siddegowda et al. 2022 (AIMET); Kuzmin et al. 2019"
    score = "measured"

    def select(self, menu: Menu, budget: Keep, probe: Probe | None = None) -> list[int]:
        """Return the choice of the lowest level that meets the budget."""
        return equal_level(menu, budget, self.score)
