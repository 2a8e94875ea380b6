"""The menu: what can be done to every layer, with columns of costs and of scores.

A rank selection picks one option of each layer, and says which by their numbers. Costs are whole numbers, one column for
each metric: parameters and MACs always, what else a budget is in where it was priced so. Scores are how bad an option is in
some eyes, one column for each: `response` is the predicted harm, always there; what other rank selections look at stands
beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from spectrim.core.cost import COUNTED, NANOSECONDS, Bound, BudgetError, Cost, Keep, Metric, limit_of
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
        for metric in COUNTED:
            costs[metric] = np.array([option.cost.of(metric) for option in options], dtype=np.int64)
        return LayerMenu(tuple(options), costs, {RESPONSE: np.array(harms, dtype=np.float64)})

    @property
    def layer(self) -> Layer:
        """The layer."""
        return self.options[0].layer

    def scored(self, score: str) -> np.ndarray:
        """Return the numbers of the options that have this score."""
        return np.flatnonzero(~np.isnan(self.scores[score]))

    def saving(self, metrics: Sequence[Metric]) -> LayerMenu:
        """Return the menu of the options that pay: that cost less than the layer itself in one of these metrics."""
        less = [self.costs[metric] < self.costs[metric][0] for metric in metrics]
        numbers = np.flatnonzero(np.any(less, axis=0) | (np.arange(len(self.options)) == 0))
        if len(numbers) == len(self.options):
            return self
        costs = {metric: column[numbers] for metric, column in self.costs.items()}
        scores = {name: column[numbers] for name, column in self.scores.items()}
        return LayerMenu(tuple(self.options[number] for number in numbers), costs, scores)

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
        others: What the whole original network costs in metrics that no `Cost` has, bytes and nanoseconds.
        also: Bounds that every choice has to hold beside the budget that a rank selection is given. Only those that say
            `several` are given a menu with such.
    """

    layers: tuple[LayerMenu, ...]
    original: Cost
    others: Mapping[str, int] = field(default_factory=dict)
    also: tuple[Keep, ...] = ()

    def whole(self, metric: Metric) -> int:
        """Return what the whole original network costs."""
        return self.original.of(metric) if metric in COUNTED else self.others[metric]

    def cost(self, chosen: Sequence[int], metric: Metric) -> int:
        """Return the cost of the whole network with one option of each layer."""
        saved = sum(
            int(row.costs[metric][0] - row.costs[metric][index]) for row, index in zip(self.layers, chosen, strict=True)
        )
        return self.whole(metric) - saved

    def least(self, metric: Metric) -> int:
        """Return the smallest cost of the whole network that any choice reaches."""
        return self.cost([int(row.costs[metric].argmin()) for row in self.layers], metric)

    def allowed(self, budget: Bound) -> int:
        """Return what the chosen options may cost together: the bound less everything the menu cannot touch.

        Raises:
            BudgetError: If even the cheapest options cost more.
        """
        whole, least = self.whole(budget.metric), self.least(budget.metric)
        limit = limit_of(budget, whole)
        if least > limit:
            if all(len(row.options) == 1 for row in self.layers):
                raise BudgetError(
                    f"{budget} cannot be met: no method pays on any layer that may be "
                    "replaced; `spectrim inspect` tells the reason for each"
                )
            raise BudgetError(f"{budget} cannot be met: the methods and layers allowed reach {self._reach(budget)}")
        return limit - whole + sum(int(row.costs[budget.metric][0]) for row in self.layers)

    def _reach(self, budget: Bound) -> str:
        """Return the least that can be reached, in the budget's unit, what of it nothing can touch, and what to change."""
        metric, whole, least = budget.metric, self.whole(budget.metric), self.least(budget.metric)
        fixed = whole - sum(int(row.costs[metric][0]) for row in self.layers if len(row.options) > 1)
        number = f"{least / NANOSECONDS:.4g} ms" if metric == "latency" else f"{least:,}"
        reached, change = (
            (f"{least / whole:.4f}", "the fraction") if isinstance(budget, Keep) else (f"{number} of {metric}", "the bound")
        )
        return (
            f"{reached} at least ({100 * max(fixed, 0) / whole:.0f} % are of parts that no decomposition can touch); raise "
            f"{change}, allow more methods, exclude fewer layers or let ranks be multiples of a smaller number"
        )

    def numbers(self, plan: Plan) -> list[int]:
        """Return the number of the option of each layer that a plan takes.

        Raises:
            ValueError: If the menu does not offer one.
        """
        found = []
        for row in self.layers:
            wanted = plan.choices.get(row.layer.name, row.options[0])
            at = [i for i, option in enumerate(row.options) if (option.method, option.rank) == (wanted.method, wanted.rank)]
            if not at:
                raise ValueError(f"the menu does not offer {wanted.title} of rank {wanted.rank} for layer {row.layer.name!r}")
            found.append(at[0])
        return found

    def plan(self, chosen: Sequence[int]) -> Plan:
        """Return the plan of one option for each layer, with predicted harms; layers left alone are not named."""
        picked = [(row.options[index], row.scores[RESPONSE][index]) for row, index in zip(self.layers, chosen, strict=True)]
        return Plan(
            {option.layer.name: replace(option, harm=float(harm)) for option, harm in picked if option.method is not None},
            self.original,
        )

    def with_costs(self, metric: Metric, whole: int, columns: Sequence[np.ndarray]) -> Menu:
        """Return the menu with one more column of costs, or another in its place, given for each layer.

        Args:
            metric: Its name.
            whole: What the whole original network costs.
            columns: Whole numbers, (K,) for each layer.
        """
        rows = [replace(row, costs={**row.costs, metric: column}) for row, column in zip(self.layers, columns, strict=True)]
        return replace(self, layers=tuple(rows), others={**self.others, metric: whole})

    def with_scores(self, name: str, columns: Sequence[np.ndarray]) -> Menu:
        """Return the menu with one more column of scores, given for each layer."""
        rows = [replace(row, scores={**row.scores, name: column}) for row, column in zip(self.layers, columns, strict=True)]
        return replace(self, layers=tuple(rows))

    def paying(self, metrics: Sequence[Metric]) -> Menu:
        """Return the menu of the options that cost less than the layer itself in one of these metrics."""
        return replace(self, layers=tuple(row.saving(metrics) for row in self.layers))
