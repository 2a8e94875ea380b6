"""ALDS: minimise the largest relative error, in operator norm, over the layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from spectrim.core.cost import Keep
from spectrim.core.menu import Menu
from spectrim.core.search import Probe, Search
from spectrim.search.level import equal_level


@dataclass(frozen=True)
class ALDS(Search):
    """One bound on the relative spectral-norm error for all layers, the lowest that meets the budget.

    Within the bound each layer takes its cheapest option of the menu; with `TiledSVD` on it this is the search over the
    number of subspaces too.

    Reference:
        Liebenwein, Maalouf, Feldman, Rus: Compressing neural networks: towards determining the optimal layer-wise
        decomposition (2021), section 3.
    """

    title: ClassVar[str] = "ALDS"
    reference: ClassVar[str] = "Liebenwein et al. 2021, section 3"
    score = "spectral"

    def select(self, menu: Menu, budget: Keep, probe: Probe | None = None) -> list[int]:
        """Return the choice that is optimal for the largest error."""
        return equal_level(menu, budget, self.score)
