"""The exact optimum when harms add up: a multiple-choice knapsack over all methods and ranks of all layers.

Under one bound by dynamic programming, under several by branch and bound (HiGHS).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from spectrim.core.cost import BudgetError, Keep
from spectrim.core.menu import Menu
from spectrim.core.search import Probe, Search

SCORES = ("response", "cautious", "closed", "whitened")
STATES = 20_000  # partial plans that are followed; of more, those of least bound
WIDE = 10  # times as many are looked at before those that others beat are left out
FIRST = 200  # the same in a first, quick pass
TOLERANCE = 1e-5  # of the harm; smaller gains are not looked for
SECONDS = 60.0  # of branch and bound at most; then the best that was found is taken


@dataclass(frozen=True)
class Knapsack(Search):
    """Minimise the sum of predicted harms under the budget, one option per layer.

    Dynamic programming over the layers, where a partial plan is followed only while the relaxed optimum of the other layers
    (their convex hulls, steps taken in part) could still bring it below the best plan found. Exact to 1e-5 of the harm while at
    most `STATES` partial plans survive; of more, those of least bound are followed. Under several bounds (`Menu.also`) it is a
    mixed-integer program, solved to the same 1e-5.

    Args:
        score: `response`: predicted loss in nats. `closed`: the same by moments alone; `cautious`: put right in layers only
            that stand out. `whitened`: each layer's dropped share of its own output energy, as in BALF.

    Raises:
        ValueError: If the score is another.

    Reference:
        Kellerer, Pferschy, Pisinger: Knapsack problems (2004), chapter 11. BALF (arXiv 2509.25136) for `whitened`.
    """

    score: str = "response"

    title: ClassVar[str] = "Knapsack"
    reference: ClassVar[str] = "Kellerer, Pferschy, Pisinger 2004, chapter 11"
    several: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the score."""
        if self.score not in SCORES:
            raise ValueError(f"Knapsack was given score={self.score!r}; allowed are {', '.join(map(repr, SCORES))}")

    def select(self, menu: Menu, budget: Keep, probe: Probe | None = None) -> list[int]:
        """Return the choice of least total harm."""
        bounds = (budget, *menu.also)
        limits = [menu.allowed(bound) for bound in bounds]
        rows = [row.frontier(budget.metric, self.score) if len(bounds) == 1 else row.scored(self.score) for row in menu.layers]
        harms = [row.scores[self.score][numbers] for row, numbers in zip(menu.layers, rows, strict=True)]
        costs = [
            np.stack([row.costs[bound.metric][numbers] for bound in bounds])
            for row, numbers in zip(menu.layers, rows, strict=True)
        ]
        if len(bounds) == 1:
            found: list[int] | None = minimum(harms, [cost[0] for cost in costs], limits[0])
        else:
            found = minimum_within(harms, costs, limits)
        if found is None:
            raise BudgetError(
                f"{' and '.join(map(str, bounds))} cannot be met together, though each alone can; raise one of them, allow "
                "more methods or exclude fewer layers"
            )
        return [int(numbers[index]) for numbers, index in zip(rows, found, strict=True)]


def minimum(harms: list[np.ndarray], costs: list[np.ndarray], limit: int) -> list[int]:
    """Return one option's index for each class such that the costs are within the limit and the sum of harms is least.

    Args:
        harms: Of each class, (K_i,), falling.
        costs: Whole numbers, (K_i,), rising.
        limit: At least the sum of the first costs.
    """
    order = sorted(range(len(harms)), key=lambda index: -int(np.ptp(costs[index])))  # fine steps last: bounds are tight there
    harms, costs = [harms[index] for index in order], [costs[index] for index in order]
    best, bar = [0] * len(harms), np.inf
    for states in (FIRST, STATES):  # the first pass makes a plan whose harm leaves the second less to follow
        found = _followed(harms, costs, limit, bar, states)
        if found is not None:
            best = found
            least = sum(float(harm[index]) for harm, index in zip(harms, best, strict=True))
            bar = least - TOLERANCE * abs(least)
    return [best[order.index(index)] for index in range(len(order))]


def minimum_within(harms: list[np.ndarray], costs: list[np.ndarray], limits: list[int]) -> list[int] | None:
    """Return one option's index for each class such that all costs are within their limits and the sum of harms is least.

    Args:
        harms: Of each class, (K_i,).
        costs: Whole numbers, (bounds, K_i).
        limits: One a bound.

    Returns:
        The choice, or None if no choice is within all limits.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # slow to import
    from scipy.sparse import block_diag, csr_array

    if not harms:
        return []
    few = [_undominated(harm, cost) for harm, cost in zip(harms, costs, strict=True)]
    harm = np.concatenate([harm[index] for harm, index in zip(harms, few, strict=True)])
    cost = np.concatenate([cost[:, index] for cost, index in zip(costs, few, strict=True)], axis=1)
    unit = float(np.abs(harm).max()) or 1.0
    scale = np.maximum(np.array(limits, dtype=float), 1.0)
    one = LinearConstraint(block_diag([np.ones((1, len(index))) for index in few], format="csr"), 1, 1)
    for slack in (0.0, 1e-6, 1e-5, 1e-4):  # constraints hold to 1e-6 only, and budgets are hard
        within = LinearConstraint(csr_array(cost / scale[:, None]), -np.inf, np.array(limits) / scale - slack)
        options = {"mip_rel_gap": TOLERANCE, "time_limit": SECONDS}
        found = milp(
            harm / unit, integrality=np.ones(len(harm)), bounds=Bounds(0, 1), constraints=(one, within), options=options
        )
        if found.x is None:
            return None
        parts = np.split(found.x, np.cumsum([len(index) for index in few])[:-1])
        chosen = [int(index[part.argmax()]) for index, part in zip(few, parts, strict=True)]
        spent = sum(cost[:, index] for cost, index in zip(costs, chosen, strict=True))
        if np.all(spent <= np.array(limits)):
            return chosen
    return None


def _undominated(harm: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Return the indices of the options that no other beats in harm and every cost; of equals the first."""
    values = np.vstack([harm, cost]).T  # (K, bounds + 1)
    order = np.lexsort(values.T[::-1])
    kept: list[int] = []
    for index in order:
        if not kept or not np.any(np.all(values[kept] <= values[index], axis=1)):
            kept.append(int(index))
    return np.array(sorted(kept))


def _followed(harms: list[np.ndarray], costs: list[np.ndarray], limit: int, bar: float, states: int) -> list[int] | None:
    """Return the best choice whose harm is below the bar, following so many partial ones; None if there is none."""
    steps = [_hull(harm, cost) for harm, cost in zip(harms, costs, strict=True)]
    harm, cost = np.zeros(1), np.zeros(1, dtype=np.int64)
    trail: list[tuple[np.ndarray, np.ndarray]] = []
    for index, (more, price) in enumerate(zip(harms, costs, strict=True)):
        rest = _relaxed(harms[index + 1 :], costs[index + 1 :], steps[index + 1 :])
        total, spent = (harm[:, None] + more).ravel(), (cost[:, None] + price).ravel()
        alive = np.flatnonzero(spent <= limit - rest[0][0])
        bound = total[alive] + np.interp(limit - spent[alive], *rest)
        alive, bound = alive[bound < bar], bound[bound < bar]
        alive, bound = _least(alive, bound, WIDE * states)
        sort = np.lexsort((total[alive], spent[alive]))
        alive, bound = alive[sort], bound[sort]
        better = np.diff(np.minimum.accumulate(total[alive]), prepend=np.inf) < 0  # than all that cost less
        alive, bound = _least(alive[better], bound[better], states)
        harm, cost = total[alive], spent[alive]
        trail.append((alive // len(more), alive % len(more)))
    if not len(harm):
        return None
    state, chosen = int(harm.argmin()), []
    for parents, options in reversed(trail):
        chosen.append(int(options[state]))
        state = int(parents[state])
    return chosen[::-1]


def _least(chosen: np.ndarray, bound: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return at most so many, those of least bound."""
    if len(chosen) <= count:
        return chosen, bound
    few = np.argpartition(bound, count)[:count]
    return chosen[few], bound[few]


def _hull(harm: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Return the steps (S, 2) of cost and harm along the lower convex hull of a class's options, steepest first."""
    kept = [0]
    for index in range(1, len(harm)):
        while len(kept) > 1:
            a, b = kept[-2:]
            if (harm[b] - harm[a]) * float(cost[index] - cost[b]) < (harm[index] - harm[b]) * float(cost[b] - cost[a]):
                break
            kept.pop()
        kept.append(index)
    return np.stack([np.diff(cost[kept]), np.diff(harm[kept])], axis=1)


def _relaxed(harms: list[np.ndarray], costs: list[np.ndarray], steps: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners, costs and harms, of the least harm over the cost of these classes if steps could be taken in part."""
    start = [[float(sum(cost[0] for cost in costs)), float(sum(harm[0] for harm in harms))]]
    found = np.concatenate([np.zeros((0, 2)), *steps])
    corners = np.cumsum(np.concatenate([start, found[np.argsort(found[:, 1] / found[:, 0])]]), axis=0)
    return corners[:, 0], corners[:, 1]
