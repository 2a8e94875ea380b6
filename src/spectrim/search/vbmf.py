"""VBMF: ranks in proportion to those that variational Bayesian matrix factorization finds in each kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from spectrim.core.cost import Keep
from spectrim.core.menu import Menu
from spectrim.core.search import Probe, Search
from spectrim.search.level import equal_level


@dataclass(frozen=True)
class VBMF(Search):
    """Every layer keeps the same multiple of the rank that the analytic solution estimates; the multiple meets the budget.

    Reference:
        Nakajima et al.: Global analytic solution of fully-observed variational Bayesian matrix factorization (2013); used
        for networks by Kim et al. 2016 (section 3.2).
    """

    title: ClassVar[str] = "VBMF"
    reference: ClassVar[str] = "Nakajima et al. 2013; Kim et al. 2016, section 3.2"
    score = "vbmf"

    def select(self, menu: Menu, budget: Keep, probe: Probe | None = None) -> list[int]:
        """Return the choice of the largest common multiple that meets the budget."""
        return equal_level(menu, budget, self.score)
