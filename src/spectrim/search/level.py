"""One level for all layers: each takes its cheapest option whose score is within the level, and the level is bisected."""

from __future__ import annotations

import numpy as np

from spectrim.core.cost import Keep
from spectrim.core.menu import LayerMenu, Menu


def equal_level(menu: Menu, budget: Keep, score: str) -> list[int]:
    """Return the choice of the lowest common level that meets the budget.

    Args:
        menu: Options with costs and scores.
        budget: A hard bound.
        score: The column whose level is to be equal.

    Raises:
        BudgetError: If no level meets it.
    """
    limit = menu.allowed(budget)
    levels = np.unique(np.concatenate([row.scores[score][row.scored(score)] for row in menu.layers] or [np.zeros(1)]))
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        chosen = [_within(row, levels[middle], budget, score) for row in menu.layers]
        if sum(int(row.costs[budget.metric][index]) for row, index in zip(menu.layers, chosen, strict=True)) <= limit:
            high = middle
        else:
            low = middle + 1
    return [_within(row, levels[low], budget, score) for row in menu.layers]


def _within(row: LayerMenu, level: float, budget: Keep, score: str) -> int:
    """Return the cheapest option whose score is within the level; leaving the layer alone if there is none."""
    numbers = row.scored(score)
    numbers = numbers[row.scores[score][numbers] <= level]
    if not len(numbers):
        return 0
    return int(numbers[np.lexsort((row.scores[score][numbers], row.costs[budget.metric][numbers]))[0]])
