"""Rank selection considering inter-layer interactions: small steps around the compressed network, measured in one sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from spectrim.core.cost import Keep, Metric
from spectrim.core.menu import Menu
from spectrim.core.search import Probe, QuadraticModel, Search
from spectrim.search.portfolio import Portfolio

REACH = (0.85, 0.95, 1.05, 1.15)  # costs of the alternatives, relative to the layer's present option
LEAST = 1e-4  # relative gain below which a move is noise


@dataclass(frozen=True)
class Interaction(Search):
    """Start from `Portfolio`'s choice; then take, at constant budget, the steps whose superposed displacements pay most.

    Around the refitted compressed network every layer's neighbouring options displace the outputs; the harm of taking
    several together is a quadratic form in those displacements (`QuadraticModel`). Its best point within the budget, found by
    single and paired moves, is built, refitted and accepted if the harm on held-out images falls by more than the standard
    error of the difference. Then the model is measured again, until a round no longer pays.

    Args:
        rounds: At most so many.
        images: Calibration images beyond those of the statistics: two thirds measure displacements, one third accepts. With
            fewer than a quarter of them the images that judge serve: one half measures, the other accepts.

    Raises:
        ValueError: If rounds is negative or images below 1.

    Reference:
        The title is that of Kokhazadeh et al. (DATE 2025), whose abstract sets the task; the algorithm is ours.
    """

    rounds: int = 1
    images: int = 4608
    measures: ClassVar[bool] = True
    title: ClassVar[str] = "Interaction"
    reference: ClassVar[str] = "the task: Kokhazadeh et al., DATE 2025"
    several: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the values."""
        if self.rounds < 0 or self.images < 1:
            raise ValueError(f"Interaction was given rounds={self.rounds}, images={self.images}; they must be at least 0 and 1")

    def select(self, menu: Menu, budget: Keep, probe: Probe | None = None) -> list[int]:
        """Return the choice of `Portfolio`, improved as far as `probe` finds that it pays."""
        chosen, metric = list(Portfolio().select(menu, budget, probe)), budget.metric
        bounds = (budget, *menu.also)
        for _ in range(self.rounds if probe is not None else 0):
            assert probe is not None
            alternatives = neighbours(menu, chosen, metric)
            if not alternatives:
                break
            model = probe.quadratic_model(chosen, alternatives)
            prices = [
                [int(menu.layers[layer].costs[each.metric][[chosen[layer], index]] @ [-1, 1]) for each in bounds]
                for layer, index in alternatives
            ]
            slack = [menu.allowed(each) - _spent(menu, chosen, each.metric) for each in bounds]
            moves = best_moves(model, [layer for layer, _ in alternatives], prices, slack)
            if not moves:
                break
            candidate = list(chosen)
            for move in moves:
                candidate[alternatives[move][0]] = alternatives[move][1]
            gain, error = probe.gain(chosen, candidate)
            if gain <= error:
                break
            chosen = candidate
        return chosen


def _spent(menu: Menu, chosen: Sequence[int], metric: Metric) -> int:
    return sum(int(row.costs[metric][index]) for row, index in zip(menu.layers, chosen, strict=True))


def neighbours(menu: Menu, chosen: Sequence[int], metric: Metric) -> list[tuple[int, int]]:
    """Return for every layer that is replaced the options of the frontier whose costs are nearest to those of `REACH`.

    Args:
        menu: The options.
        chosen: One option's number for each layer.
        metric: Of the costs.

    Returns:
        Pairs of a layer's number and an option's.
    """
    found = []
    for layer, (row, now) in enumerate(zip(menu.layers, chosen, strict=True)):
        if not now:
            continue
        costs = row.costs[metric]
        others = [int(index) for index in row.frontier(metric) if index not in (0, now)]
        near: dict[int, None] = {}
        for share in REACH:
            fresh = [index for index in others if index not in near and (costs[index] - costs[now]) * (share - 1) > 0]
            if fresh:
                near[min(fresh, key=lambda index: abs(costs[index] - share * costs[now]))] = None
        found += [(layer, index) for index in near]
    return found


def best_moves(
    model: QuadraticModel, owners: Sequence[int], prices: Sequence[Sequence[int]], slack: Sequence[int]
) -> list[int]:
    """Return alternatives, at most one a layer, that lower the predicted harm within the budget: best move first, then on.

    A move sets one layer, or two layers at once, to an alternative or back; so one layer can pay for another.

    Args:
        model: What the A alternatives do.
        owners: The layer of each, (A,).
        prices: By how much each raises the costs of the bounds, (A, bounds).
        slack: By how much these may rise, (bounds,).
    """
    price_of, left = np.array(prices, dtype=float), np.array(slack, dtype=float)
    taken: dict[int, int] = {}
    value = model.base
    while True:
        changes, layers = _single_moves(owners, taken)
        inside = np.zeros(len(owners))
        inside[list(taken.values())] = 1
        slope = model.linear + model.gram @ inside
        cross = changes @ model.gram @ changes.T  # (moves, moves)
        single = changes @ slope + 0.5 * np.diag(cross)
        both = single[:, None] + single[None] + cross
        both[layers[:, None] == layers[None]] = np.inf  # two moves of one layer are none
        np.fill_diagonal(both, single)  # a move with itself stands for the move alone
        price = changes @ price_of  # (moves, bounds)
        total = price[:, None] + price[None]
        total[range(len(price)), range(len(price))] = price
        both[(total > left).any(-1)] = np.inf
        first, second = np.unravel_index(int(np.argmin(both)), both.shape)
        if not both[first, second] < -LEAST * abs(value):
            return sorted(taken.values())
        value += float(both[first, second])
        left = left - total[first, second]
        for move in {int(first), int(second)}:
            taken.pop(owners[int(np.flatnonzero(changes[move])[0])], None)
            for index in np.flatnonzero(changes[move] > 0):
                taken[owners[int(index)]] = int(index)


def _single_moves(owners: Sequence[int], taken: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
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
