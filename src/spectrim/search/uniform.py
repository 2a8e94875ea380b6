"""The same kept fraction for every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from spectrim.core.cost import Keep, Metric
from spectrim.core.menu import RESPONSE, LayerMenu, Menu
from spectrim.core.search import Probe, Search


@dataclass(frozen=True)
class Uniform(Search):
    """Every layer keeps the same fraction of its cost; among the options within it the least harmful is taken.

    Reference:
        The customary baseline, for example of Denton et al. 2014.
    """

    title: ClassVar[str] = "Uniform"
    reference: ClassVar[str] = "customary; for example Denton et al. 2014"

    def select(self, menu: Menu, budget: Keep, probe: Probe | None = None) -> list[int]:
        """Return the choice of the largest common fraction that meets the budget."""
        limit, metric = menu.allowed(budget), budget.metric
        costs = [row.costs[metric] for row in menu.layers]
        fractions = np.unique(np.concatenate([cost / max(1, cost[0]) for cost in costs] or [np.zeros(1)]))
        low, high = 0, len(fractions) - 1
        while low < high:
            middle = (low + high + 1) // 2
            chosen = [_within(row, fractions[middle], metric) for row in menu.layers]
            if sum(int(cost[index]) for cost, index in zip(costs, chosen, strict=True)) <= limit:
                low = middle
            else:
                high = middle - 1
        return [_within(row, fractions[low], metric) for row in menu.layers]


def _within(row: LayerMenu, fraction: float, metric: Metric) -> int:
    """Return the least harmful option within a fraction of the layer's cost, or the cheapest of all."""
    costs = row.costs[metric]
    bound = max(fraction * costs[0], costs.min())
    numbers = np.flatnonzero(costs <= bound * (1 + 1e-12))
    return int(numbers[np.lexsort((costs[numbers], row.scores[RESPONSE][numbers]))[0]])
