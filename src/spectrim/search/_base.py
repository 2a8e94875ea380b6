"""The interface of every rank selection, and the menu it chooses from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from spectrim.cost import BudgetError, Cost, Keep
from spectrim.plan import Option, Plan


@dataclass(frozen=True)
class Menu:
    """What can be done: for every layer its options, "leave it" first; and the cost of the whole original network."""

    options: tuple[tuple[Option, ...], ...]
    original: Cost

    def allowed(self, budget: Keep) -> int:
        """Return what the chosen options may cost together: the bound less everything the menu cannot touch.

        Raises:
            BudgetError: If even the cheapest options cost more.
        """
        fixed = self.original.of(budget.metric) - sum(row[0].cost.of(budget.metric) for row in self.options)
        limit = int(budget.fraction * self.original.of(budget.metric) + 1e-9) - fixed
        least = sum(min(option.cost.of(budget.metric) for option in row) for row in self.options)
        if least > limit:
            reachable = (least + fixed) / self.original.of(budget.metric)
            raise BudgetError(
                f"Keep({budget.fraction:g}, {budget.metric!r}) cannot be met: the methods and layers allowed reach "
                f"{reachable:.4f} at least; raise the fraction, allow more methods or exclude fewer layers"
            )
        return limit

    def plan(self, chosen: list[Option]) -> Plan:
        """Return the plan of one option per layer; layers left alone are not named."""
        return Plan({option.layer.name: option for option in chosen if option.method is not None}, self.original)


class Search(ABC):
    """A rank selection. Subclasses are frozen dataclasses whose fields are the options of the method."""

    title: ClassVar[str]
    reference: ClassVar[str]
    score: ClassVar[str] = "response"  # what the harms of its menu are; the others are in score/rescore.py

    @abstractmethod
    def select(self, menu: Menu, budget: Keep) -> Plan:
        """Return a plan that meets the budget.

        Args:
            menu: Options of every layer with cost and predicted harm.
            budget: A hard bound.

        Raises:
            BudgetError: If no choice meets it.
        """
