"""The interface of every rank selection, and what it may have measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

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

    def harm(self, chosen: Sequence[int]) -> float:
        """Return the measured harm of a choice, refitted."""

    def gain(self, chosen: Sequence[int], other: Sequence[int]) -> tuple[float, float]:
        """Return how much less harm `other` does than `chosen`, both refitted, on other images, and its standard error."""


class Search(ABC):
    """A rank selection. Subclasses are frozen dataclasses whose fields are the options of the method.

    Attributes:
        title: Name of the rank selection in messages; by default that of the class.
        reference: The paper that it is from; by default none.
        score: The column of the menu that it looks at; the smaller, the better an option. `response`, the predicted harm, is
            always there, and so are `closed` (the same by moments alone) and `cautious` (that, put right by unseen images in
            layers that stand out). Computed for those who ask: of the weights `energy` (relative squared error), `spectral`
            (relative error in operator norm) and `vbmf` (VBMF's rank over the option's); with calibration data `whitened`
            (share of the layer's output variance that is lost), `measured` (harm of the network with this layer alone
            compressed) and `similarity` (one less the cosine between the layer's output and the original's). The last two
            are measured for some ten options of each layer; the others have NaN and cannot be chosen by them.
        measures: Whether it wants a `Probe` that measures on the images that no fit sees.
        images: How many images beyond the calibration's it wants a `Probe` to measure on; 0 for none, then `select` gets None.
            With fewer than a quarter of them there is no probe, or one on the halves of the unseen images if it `measures`.
        several: Whether it holds the bounds in `Menu.also`, beside the budget; else it is not asked for several budgets.
    """

    title: ClassVar[str]
    reference: ClassVar[str] = ""
    score: str = RESPONSE
    measures: ClassVar[bool] = False
    several: ClassVar[bool] = False
    images: int = 0

    def __init_subclass__(cls, **given: Any) -> None:
        """Give a class that has no title its name as title."""
        super().__init_subclass__(**given)
        if "title" not in vars(cls):
            cls.title = cls.__name__

    def __repr__(self) -> str:
        """Return the name of the class; dataclasses say their options too."""
        return f"{type(self).__name__}()"

    @abstractmethod
    def select(self, menu: Menu, budget: Keep, probe: Probe | None = None) -> Sequence[int]:
        """Return the number of the option that each layer of the menu takes, within the budget.

        Args:
            menu: Options of every layer with their costs and scores; number 0 leaves the layer alone.
            budget: A hard bound. `menu.allowed(budget)` is what the chosen options may cost together.
            probe: Measures; None where there is nothing to measure on.

        Raises:
            BudgetError: If no choice meets it; `menu.allowed(budget)` raises it.
        """
