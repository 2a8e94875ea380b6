"""Rank selection considering inter-layer interactions: small steps around the compressed network, measured in one sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from spectrim.cost import Keep, Metric
from spectrim.plan import Option, Plan
from spectrim.search._base import Menu, Probe, Search, Surroundings
from spectrim.search.knapsack import Knapsack, frontier

REACH = (0.85, 0.95, 1.05, 1.15)  # costs of the alternatives, relative to the layer's present option
LEAST = 1e-4  # relative gain below which a move is noise


@dataclass(frozen=True)
class Interaction(Search):
    """Start from the additive optimum; then take, at constant budget, the steps whose superposed displacements pay most.

    Around the refitted compressed network every layer's neighbouring options displace the outputs; the harm of taking
    several together is a quadratic form in those displacements (`Surroundings`). Its best point within the budget, found by
    single and paired moves, is built, refitted and accepted if the harm on held-out images falls by more than the standard
    error of the difference. Then the surroundings are measured again, until a round no longer pays.

    Args:
        rounds: At most so many.
        images: Calibration images beyond those of the statistics: two thirds measure displacements, one third accepts. With
            fewer than a quarter of them the additive optimum is returned as it is.

    Raises:
        ValueError: If a number is negative.

    Reference:
        The title is that of Kokhazadeh et al. (DATE 2025), whose abstract sets the task; the algorithm is ours.
    """

    rounds: int = 1
    images: int = 4608
    title: ClassVar[str] = "Interaction"
    reference: ClassVar[str] = "the task: Kokhazadeh et al., DATE 2025"

    def __post_init__(self) -> None:
        """Check the values."""
        if self.rounds < 0 or self.images < 0:
            raise ValueError(f"Interaction was given rounds={self.rounds}, images={self.images}; neither may be negative")

    def select(self, menu: Menu, budget: Keep, probe: Probe | None = None) -> Plan:
        """Return the additive optimum, improved as far as `probe` finds that it pays."""
        plan = Knapsack().select(menu, budget)
        for _ in range(self.rounds if probe is not None else 0):
            assert probe is not None
            alternatives = neighbours(menu, plan, budget.metric)
            if not alternatives:
                break
            found = probe.surroundings(plan, alternatives)
            chosen = best_moves(found, plan, menu.allowed(budget) - _spent(menu, plan, budget.metric), budget.metric)
            if not chosen:
                break
            moved = {found.options[index].layer.name: found.options[index] for index in chosen}
            candidate = Plan({name: moved.get(name, option) for name, option in plan.items()}, plan.original)
            gain, error = probe.gain(plan, candidate)
            if gain <= error:
                break
            plan = candidate
        return plan


def neighbours(menu: Menu, plan: Plan, metric: Metric) -> list[Option]:
    """Return for every planned layer the options of the frontier whose costs are nearest to those of `REACH`."""
    found = []
    for row in menu.options:
        now = plan.choices.get(row[0].layer.name)
        if now is None:
            continue
        cost = now.cost.of(metric)
        same = [o for o in frontier(row, metric) if o.method is not None and (o.method, o.rank) != (now.method, now.rank)]
        near: dict[int, Option] = {}
        for share in REACH:
            side = [o for o in same if (o.cost.of(metric) - cost) * (share - 1) > 0]
            fresh = [o for o in side if id(o) not in near]
            if fresh:
                best = min(fresh, key=lambda option: abs(option.cost.of(metric) - share * cost))
                near[id(best)] = best
        found += list(near.values())
    return found


def best_moves(found: Surroundings, plan: Plan, slack: int, metric: Metric) -> list[int]:
    """Return alternatives, at most one a layer, that lower the predicted harm within the budget: best move first, then on.

    A move sets one layer, or two layers at once, to an alternative or back; so one layer can pay for another.

    Args:
        found: Linear and quadratic changes.
        plan: The present options.
        slack: By how much the cost may rise.
        metric: Of the costs.
    """
    owners = [option.layer.name for option in found.options]
    prices = np.array([o.cost.of(metric) - plan[o.layer.name].cost.of(metric) for o in found.options], dtype=float)
    taken: dict[str, int] = {}
    spent, value = 0.0, found.base
    while True:
        changes, layers = _single_moves(owners, taken)
        inside = np.zeros(len(owners))
        inside[list(taken.values())] = 1
        slope = found.linear + found.gram @ inside
        cross = changes @ found.gram @ changes.T  # (moves, moves)
        single = changes @ slope + 0.5 * np.diag(cross)
        both = single[:, None] + single[None] + cross
        both[layers[:, None] == layers[None]] = np.inf  # two moves of one layer are none
        np.fill_diagonal(both, single)  # a move with itself stands for the move alone
        price = changes @ prices
        total = price[:, None] + price[None]
        np.fill_diagonal(total, price)
        both[spent + total > slack] = np.inf
        first, second = np.unravel_index(int(np.argmin(both)), both.shape)
        if not both[first, second] < -LEAST * abs(value):
            return sorted(taken.values())
        value += float(both[first, second])
        spent += float(total[first, second])
        for move in {int(first), int(second)}:
            taken.pop(owners[int(np.flatnonzero(changes[move])[0])], None)
            for index in np.flatnonzero(changes[move] > 0):
                taken[owners[int(index)]] = int(index)


def _single_moves(owners: Sequence[str], taken: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return every change of one layer as a row of -1, 0 and 1 over the alternatives, and the layer's number of each."""
    names = {name: number for number, name in enumerate(dict.fromkeys(owners))}
    rows, layers = [], []
    for index, owner in enumerate(owners):
        row = np.zeros(len(owners))
        now = taken.get(owner)
        if now is not None:
            row[now] = -1
        if now != index:
            row[index] = 1
        rows.append(row)
        layers.append(names[owner])
    return np.stack(rows), np.array(layers)


def _spent(menu: Menu, plan: Plan, metric: Metric) -> int:
    return sum(plan.choices.get(row[0].layer.name, row[0]).cost.of(metric) for row in menu.options)
