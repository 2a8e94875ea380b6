"""The interface of every rank selection, the menu it chooses from, and what it may have measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

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
            if all(len(row) == 1 for row in self.options):
                raise BudgetError(
                    f"Keep({budget.fraction:g}, {budget.metric!r}) cannot be met: no method pays on any layer that may be "
                    "replaced; `spectrim inspect` tells the reason for each"
                )
            reachable = (least + fixed) / self.original.of(budget.metric)
            raise BudgetError(
                f"Keep({budget.fraction:g}, {budget.metric!r}) cannot be met: the methods and layers allowed reach "
                f"{reachable:.4f} at least; raise the fraction, allow more methods, exclude fewer layers or let ranks be "
                "multiples of a smaller number"
            )
        return limit

    def plan(self, chosen: list[Option]) -> Plan:
        """Return the plan of one option per layer; layers left alone are not named."""
        return Plan({option.layer.name: option for option in chosen if option.method is not None}, self.original)


@dataclass(frozen=True)
class Surroundings:
    """What small changes of a compressed network would do to its harm, to second order.

    Choosing the alternatives c changes the harm by sum of linear[c] + 1/2 sum of gram[c, c']; the off-diagonal part of the
    gram matrix is the interaction.

    Attributes:
        options: The alternatives, (A,).
        base: Measured harm of the network itself.
        linear: First derivative of the harm along each alternative's displacement of the outputs, (A,).
        gram: Second derivatives, (A, A), symmetric and positive semidefinite.
    """

    options: tuple[Option, ...]
    base: float
    linear: np.ndarray
    gram: np.ndarray

    def harm(self, chosen: Sequence[int]) -> float:
        """Return the predicted harm with these alternatives (indices) taken together."""
        index = list(chosen)
        return float(self.base + self.linear[index].sum() + 0.5 * self.gram[np.ix_(index, index)].sum())

    def additive(self, chosen: Sequence[int]) -> float:
        """Return the same without interactions: each alternative's own change, summed."""
        index = list(chosen)
        return float(self.base + self.linear[index].sum() + 0.5 * self.gram[index, index].sum())


class Probe(Protocol):
    """What a rank selection may ask to have measured on networks; images and modules stay on the other side."""

    def surroundings(self, plan: Plan, alternatives: Sequence[Option]) -> Surroundings:
        """Return what each alternative, in place of its layer's option in the plan, would do to the refitted network."""

    def gain(self, plan: Plan, other: Plan) -> tuple[float, float]:
        """Return how much less harm `other` does than `plan`, both refitted, on held-out images, and its standard error."""


class Search(ABC):
    """A rank selection. Subclasses are frozen dataclasses whose fields are the options of the method."""

    title: ClassVar[str]
    reference: ClassVar[str]
    score: str = "response"  # what the harms of its menu are; the others are in score/rescore.py
    images: int = 0  # how many images beyond the calibration's it wants to have measured

    @abstractmethod
    def select(self, menu: Menu, budget: Keep, probe: Probe | None = None) -> Plan:
        """Return a plan that meets the budget.

        Args:
            menu: Options of every layer with cost and predicted harm.
            budget: A hard bound.
            probe: Measures; None where there is nothing to measure on.

        Raises:
            BudgetError: If no choice meets it.
        """
