"""The same kept fraction for every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from spectrim.cost import Keep
from spectrim.plan import Option, Plan
from spectrim.search._base import Menu, Probe, Search


@dataclass(frozen=True)
class Uniform(Search):
    """Every layer keeps the same fraction of its cost; among the options within it the least harmful is taken.

    Reference:
        The customary baseline, for example of Denton et al. 2014.
    """

    title: ClassVar[str] = "Uniform"
    reference: ClassVar[str] = "customary; for example Denton et al. 2014"

    def select(self, menu: Menu, budget: Keep, probe: Probe | None = None) -> Plan:
        """Return the plan of the largest common fraction that meets the budget."""
        limit = menu.allowed(budget)
        metric = budget.metric
        fractions = sorted({option.cost.of(metric) / max(1, row[0].cost.of(metric)) for row in menu.options for option in row})
        low, high = 0, len(fractions) - 1
        while low < high:
            middle = (low + high + 1) // 2
            if sum(option.cost.of(metric) for option in self._at(menu, fractions[middle], budget)) <= limit:
                low = middle
            else:
                high = middle - 1
        return menu.plan(self._at(menu, fractions[low], budget) if fractions else [])

    @staticmethod
    def _at(menu: Menu, fraction: float, budget: Keep) -> list[Option]:
        chosen = []
        for row in menu.options:
            costs = [option.cost.of(budget.metric) for option in row]
            bound = max(fraction * costs[0], min(costs))
            within = [option for option, cost in zip(row, costs, strict=True) if cost <= bound * (1 + 1e-12)]
            chosen.append(min(within, key=lambda option: (option.harm, option.cost.of(budget.metric))))
        return chosen
