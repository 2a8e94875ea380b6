"""The menu: what can be done to every layer, with columns of costs and of scores.

A rank selection picks one option of each layer, and says which by their numbers. Costs are whole numbers, one column for
each metric. Scores are how bad an option is in some eyes, one column for each: `response` is the predicted harm, always
there; what other rank selections look at stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from spectrim.core.cost import METRICS, BudgetError, Cost, Keep, Metric
from spectrim.core.layer import Layer
from spectrim.core.plan import Option, Plan

CLOSED = "closed"  # the predicted harm by moments alone
CAUTIOUS = "cautious"  # the same, put right by unseen images in layers that stand out from the others
RESPONSE = "response"  # the column of predicted harm: nats with calibration data, relative squared weight error without


@dataclass(frozen=True, eq=False)
class LayerMenu:
    """What can be done to one layer, K options.

    Attributes:
        options: The first leaves the layer alone.
        costs: Metric to whole numbers, (K,).
        scores: Name to numbers, (K,); NaN where an option has no such score and cannot be chosen by it.
    """

    options: tuple[Option, ...]
    costs: Mapping[str, np.ndarray]
    scores: Mapping[str, np.ndarray]

    @staticmethod
    def of(options: Sequence[Option], harms: Sequence[float]) -> LayerMenu:
        """Return the menu of a layer from its options and their predicted harms."""
        costs: dict[str, np.ndarray] = {}
        for metric in METRICS:
            costs[metric] = np.array([option.cost.of(metric) for option in options], dtype=np.int64)
        return LayerMenu(tuple(options), costs, {RESPONSE: np.array(harms, dtype=np.float64)})

    @property
    def layer(self) -> Layer:
        """The layer."""
        return self.options[0].layer

    def scored(self, score: str) -> np.ndarray:
        """Return the numbers of the options that have this score."""
        return np.flatnonzero(~np.isnan(self.scores[score]))

    def frontier(self, metric: Metric, score: str = RESPONSE) -> np.ndarray:
        """Return the numbers of the options that no other beats in both cost and score, cheapest first."""
        numbers = self.scored(score)
        order = numbers[np.lexsort((self.scores[score][numbers], self.costs[metric][numbers]))]
        falling = np.minimum.accumulate(self.scores[score][order])
        return order[np.diff(falling, prepend=np.inf) < 0]


@dataclass(frozen=True, eq=False)
class Menu:
    """What can be done to every layer.

    Attributes:
        layers: One menu a layer, in order of execution.
        original: Cost of the whole original network, of what the menu cannot touch too.
    """

    layers: tuple[LayerMenu, ...]
    original: Cost

    def cost(self, chosen: Sequence[int], metric: Metric) -> int:
        """Return the cost of the whole network with one option of each layer."""
        saved = sum(
            int(row.costs[metric][0] - row.costs[metric][index]) for row, index in zip(self.layers, chosen, strict=True)
        )
        return self.original.of(metric) - saved

    def least(self, metric: Metric) -> int:
        """Return the smallest cost of the whole network that any choice reaches."""
        return self.cost([int(row.costs[metric].argmin()) for row in self.layers], metric)

    def allowed(self, budget: Keep) -> int:
        """Return what the chosen options may cost together: the bound less everything the menu cannot touch.

        Raises:
            BudgetError: If even the cheapest options cost more.
        """
        whole, least = self.original.of(budget.metric), self.least(budget.metric)
        limit = int(budget.fraction * whole + 1e-9)
        if least > limit:
            if all(len(row.options) == 1 for row in self.layers):
                raise BudgetError(
                    f"{budget} cannot be met: no method pays on any layer that may be "
                    "replaced; `spectrim inspect` tells the reason for each"
                )
            raise BudgetError(
                f"{budget} cannot be met: the methods and layers allowed reach "
                f"{least / whole:.4f} at least; raise the fraction, allow more methods, exclude fewer layers or let ranks be "
                "multiples of a smaller number"
            )
        return limit - whole + sum(int(row.costs[budget.metric][0]) for row in self.layers)

    def plan(self, chosen: Sequence[int]) -> Plan:
        """Return the plan of one option for each layer, with predicted harms; layers left alone are not named."""
        picked = [(row.options[index], row.scores[RESPONSE][index]) for row, index in zip(self.layers, chosen, strict=True)]
        return Plan(
            {option.layer.name: replace(option, harm=float(harm)) for option, harm in picked if option.method is not None},
            self.original,
        )

    def with_scores(self, name: str, columns: Sequence[np.ndarray]) -> Menu:
        """Return the menu with one more column of scores, given for each layer."""
        rows = [replace(row, scores={**row.scores, name: column}) for row, column in zip(self.layers, columns, strict=True)]
        return replace(self, layers=tuple(rows))
