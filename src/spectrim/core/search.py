"""The interface of every rank selection, and what it may have measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from spectrim.core.cost import Keep
from spectrim.core.menu import RESPONSE, Menu


@dataclass(frozen=True, eq=False)
class QuadraticModel:
    """What small changes of a compressed network would do to its harm, to second order.

    Making the changes c (numbers of alternatives) changes the harm by sum of linear[c] + 1/2 sum of gram[c, c']; the
    off-diagonal part of the gram matrix is the interaction.

    Attributes:
        base: Measured harm of the network itself.
        linear: First derivative of the harm along what each of A alternatives does to the outputs, (A,).
        gram: Second derivatives, (A, A), symmetric and positive semidefinite.
    """

    base: float
    linear: np.ndarray
    gram: np.ndarray

    def harm(self, chosen: Sequence[int]) -> float:
        """Return the predicted harm with these alternatives taken together."""
        index = list(chosen)
        return float(self.base + self.linear[index].sum() + 0.5 * self.gram[np.ix_(index, index)].sum())

    def additive(self, chosen: Sequence[int]) -> float:
        """Return the same without interactions: each alternative's own change, summed."""
        index = list(chosen)
        return float(self.base + self.linear[index].sum() + 0.5 * self.gram[index, index].sum())


class Probe(Protocol):
    """What a rank selection may ask to have measured on networks; images and modules stay on the other side.

    A choice is one option's number for each layer of the menu, an alternative a layer's number and an option's.
    """

    def quadratic_model(self, chosen: Sequence[int], alternatives: Sequence[tuple[int, int]]) -> QuadraticModel:
        """Return what each alternative, in place of its layer's chosen option, would do to the refitted network."""

    def gain(self, chosen: Sequence[int], other: Sequence[int]) -> tuple[float, float]:
        """Return how much less harm `other` does than `chosen`, both refitted, on other images, and its standard error."""


class Search(ABC):
    """A rank selection. Subclasses are frozen dataclasses whose fields are the options of the method."""

    title: ClassVar[str]
    reference: ClassVar[str]
    score: str = RESPONSE  # the column of the menu that it looks at; `spectrim.sensitivity.scores` computes them
    images: int = 0  # how many images beyond the calibration's it wants to have measured

    @abstractmethod
    def select(self, menu: Menu, budget: Keep, probe: Probe | None = None) -> Sequence[int]:
        """Return the number of the option that each layer of the menu takes, within the budget.

        Args:
            menu: Options of every layer with their costs and scores.
            budget: A hard bound.
            probe: Measures; None where there is nothing to measure on.

        Raises:
            BudgetError: If no choice meets it.
        """
