"""The exact optimum when harms add up: a multiple-choice knapsack over all methods and ranks of all layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from spectrim.cost import Keep, Metric
from spectrim.plan import Option, Plan
from spectrim.search._base import Menu, Probe, Search

STATES = 50_000  # partial plans that are followed; of more, those of least bound
HALVINGS = 60  # of the price's bracket
TOLERANCE = 1e-6  # of the harm; smaller gains are not looked for


@dataclass(frozen=True)
class Knapsack(Search):
    """Minimise the sum of predicted harms under the budget, one option per layer.

    Dynamic programming over the layers, where a partial plan is followed only while its lower bound, from the price of a unit
    of cost that Lagrangian relaxation finds, is below the harm of a plan already at hand. Exact to one part in a million of
    the harm while at most `STATES` partial plans survive; beyond that at least as good as the plan at hand.

    Args:
        score: `response`: predicted loss in nats. `whitened`: each layer's dropped share of its own output energy, as in BALF.

    Raises:
        ValueError: If the score is another.

    Reference:
        Kellerer, Pferschy, Pisinger: Knapsack problems (2004), chapter 11. BALF (arXiv 2509.25136) for `whitened`.
    """

    score: str = "response"

    title: ClassVar[str] = "Knapsack"
    reference: ClassVar[str] = "Kellerer, Pferschy, Pisinger 2004, chapter 11"

    def __post_init__(self) -> None:
        """Check the score."""
        if self.score not in ("response", "whitened"):
            raise ValueError(f"Knapsack was given score={self.score!r}; allowed are 'response' and 'whitened'")

    def select(self, menu: Menu, budget: Keep, probe: Probe | None = None) -> Plan:
        """Return the plan of least total harm."""
        limit = menu.allowed(budget)
        rows = [frontier(row, budget.metric) for row in menu.options]
        harms = [np.array([option.harm for option in row]) for row in rows]
        costs = [np.array([option.cost.of(budget.metric) for option in row], dtype=np.int64) for row in rows]
        chosen = minimum(harms, costs, limit)
        return menu.plan([row[index] for row, index in zip(rows, chosen, strict=True)])


def frontier(row: tuple[Option, ...], metric: Metric) -> list[Option]:
    """Return the options that no other beats in both cost and harm, cheapest first."""
    kept: list[Option] = []
    for option in sorted(row, key=lambda option: (option.cost.of(metric), option.harm)):
        if not kept or option.harm < kept[-1].harm:
            kept.append(option)
    return kept


def minimum(harms: list[np.ndarray], costs: list[np.ndarray], limit: int) -> list[int]:
    """Return one option's index for each class such that the costs are within the limit and the sum of harms is least.

    Args:
        harms: Of each class, (K_i,), falling.
        costs: Whole numbers, (K_i,), rising.
        limit: At least the sum of the first costs.
    """
    price = _price(harms, costs, limit)
    best = _improved(harms, costs, _cheapest(harms, costs, price), limit)
    priced = [harm + price * cost for harm, cost in zip(harms, costs, strict=True)]
    losses = [row - row.min() for row in priced]  # by how much an option raises the lower bound
    bound = sum(float(row.min()) for row in priced) - price * limit
    gap = (1 - TOLERANCE) * _total(harms, best) - bound
    if gap <= 0:
        return best
    order = sorted(range(len(harms)), key=lambda index: int((losses[index] <= gap).sum()))
    loss, harm, cost = np.zeros(1), np.zeros(1), np.zeros(1, dtype=np.int64)
    rest = sum(int(row[0]) for row in costs)
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    for index in order:
        rest -= int(costs[index][0])
        options = np.flatnonzero(losses[index] <= gap)
        loss, harm, cost = (
            (old[:, None] + new[index][options]).ravel() for old, new in ((loss, losses), (harm, harms), (cost, costs))
        )
        alive = np.flatnonzero((loss <= gap) & (cost + rest <= limit))
        if len(alive) > STATES:
            alive = alive[np.argpartition(loss[alive], STATES)[:STATES]]
        alive = alive[np.lexsort((harm[alive], cost[alive]))]
        least = np.minimum.accumulate(harm[alive])
        alive = alive[np.concatenate([[True], harm[alive][1:] < least[:-1]])] if len(alive) else alive
        loss, harm, cost = loss[alive], harm[alive], cost[alive]
        steps.append((alive // len(options), options[alive % len(options)]))
    if not len(harm) or float(harm.min()) >= _total(harms, best):
        return best
    state, chosen = int(harm.argmin()), [0] * len(harms)
    for index, (parents, options) in zip(reversed(order), reversed(steps), strict=True):
        chosen[index], state = int(options[state]), int(parents[state])
    return chosen


def _price(harms: list[np.ndarray], costs: list[np.ndarray], limit: int) -> float:
    """Return the harm that a unit of cost is worth: the least price at which the classes' own choices are within the limit."""
    low, high = 0.0, sum(float(np.ptp(harm)) for harm in harms) / max(limit, 1)
    if _total(costs, _cheapest(harms, costs, low)) <= limit:
        return low
    while _total(costs, _cheapest(harms, costs, high)) > limit:
        low, high = high, 4 * high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if _total(costs, _cheapest(harms, costs, middle)) <= limit else (middle, high)
    return high


def _cheapest(harms: list[np.ndarray], costs: list[np.ndarray], price: float) -> list[int]:
    return [int(np.argmin(harm + price * cost)) for harm, cost in zip(harms, costs, strict=True)]


def _total(values: list[np.ndarray], chosen: list[int]) -> float:
    return float(sum(row[index] for row, index in zip(values, chosen, strict=True)))


def _improved(harms: list[np.ndarray], costs: list[np.ndarray], chosen: list[int], limit: int) -> list[int]:
    """Spend what the limit leaves: change one class's option at a time, as long as the harm falls."""
    chosen = list(chosen)
    while chosen:
        room = limit - int(_total(costs, chosen))
        gains = [
            np.where(cost <= cost[index] + room, harm[index] - harm, -np.inf)
            for harm, cost, index in zip(harms, costs, chosen, strict=True)
        ]
        row = int(np.argmax([gain.max() for gain in gains]))
        if gains[row].max() <= 0:
            break
        chosen[row] = int(gains[row].argmax())
    return chosen
