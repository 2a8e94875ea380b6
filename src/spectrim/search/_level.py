"""One level for all layers: each takes its cheapest option whose score is within the level, and the level is bisected."""

from __future__ import annotations

from spectrim.cost import Keep
from spectrim.plan import Option, Plan
from spectrim.search._base import Menu


def equal_level(menu: Menu, budget: Keep) -> Plan:
    """Return the plan of the lowest common level that meets the budget.

    Args:
        menu: Its harms are the scores that are to be equal.
        budget: A hard bound.

    Raises:
        BudgetError: If no level meets it.
    """
    limit = menu.allowed(budget)
    levels = sorted({option.harm for row in menu.options for option in row})
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        chosen = _within(menu, levels[middle], budget)
        if sum(option.cost.of(budget.metric) for option in chosen) <= limit:
            high = middle
        else:
            low = middle + 1
    return menu.plan(_within(menu, levels[low], budget) if levels else [])


def _within(menu: Menu, level: float, budget: Keep) -> list[Option]:
    allowed = [[option for option in row if option.harm <= level] or [row[0]] for row in menu.options]
    return [min(row, key=lambda option: (option.cost.of(budget.metric), option.harm)) for row in allowed]
