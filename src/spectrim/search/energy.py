"""Equal relative energy: every layer loses the same share of its kernel's squared singular values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from spectrim.cost import Keep
from spectrim.plan import Plan
from spectrim.search._base import Menu, Search
from spectrim.search._level import equal_level


@dataclass(frozen=True)
class Energy(Search):
    """One threshold on the relative squared weight error for all layers.

    Reference:
        Zhang et al. 2016 (section 3.3) and common practice.
    """

    title: ClassVar[str] = "Energy"
    reference: ClassVar[str] = "Zhang et al. 2016, section 3.3"
    score: ClassVar[str] = "energy"

    def select(self, menu: Menu, budget: Keep) -> Plan:
        """Return the plan of the lowest threshold that meets the budget."""
        return equal_level(menu, budget)
