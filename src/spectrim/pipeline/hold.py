"""The closed loop: a plan whose measured time holds a budget, where predictions alone would be too fast.

What is chosen is timed beside the original, predicted savings are scaled by what was saved, and it is chosen again. A plan that
is chosen for its short time has the errors of the prediction in its favour, so the first one usually takes too long.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from spectrim.core.cost import Bound, BudgetError, Keep, limit_of
from spectrim.core.menu import Menu
from spectrim.core.plan import Plan

ROUNDS = 5  # plans that are timed at most on the way to one that holds the budget
SAFE = 0.005  # below the bound a measurement must be, since a fresh process measures a little otherwise
MARGIN = 0.0125  # below the bound is aimed at
ENOUGH = 0.025  # below the bound is near enough
FASTER = 0.01  # of the original's time by which another plan must be faster to win
SAME = 1.02  # predicted harms within this ratio are those of plans by predictions
CUTS = 7  # of the bracket, to find the fewest MACs at a harm

Select = Callable[[Menu, Sequence[Bound], bool], Plan]  # the rank selection's plan within bounds; whether it may measure


class Timer(Protocol):
    """Times plans."""

    def ratio(self, plan: Plan) -> float:
        """Return the time of a plan's network over that of the original."""


@dataclass(frozen=True)
class _Timed:
    """A plan and its time over that of the original, and what scales predicted savings so that they are the measured ones."""

    plan: Plan
    ratio: float
    scale: float


def hold(menu: Menu, bounds: Sequence[Bound], timer: Timer, select: Select, *, measure: bool) -> Plan:
    """Return a plan within all bounds, those on latency by its measured time.

    Args:
        menu: With a column for latency.
        bounds: One at least is on latency.
        timer: Times plans.
        select: Chooses by a menu.
        measure: Whether the rank selection may have harms measured, in the last choice; the others are by predictions.

    Raises:
        BudgetError: If no plan does.
    """
    limit = _limit(menu, bounds)
    tried = _rounds(menu, bounds, timer, select)
    held = [timed for timed in tried if timed.ratio <= limit]
    if not held:
        best = min(tried, key=lambda timed: timed.ratio)
        raise BudgetError(
            f"{' and '.join(map(str, bounds))} cannot be met: the best of {len(tried)} plans that were timed keeps "
            f"{best.ratio:.4f} of the time; raise the bound, allow more methods or exclude fewer layers"
        )
    first = best = min(held, key=lambda timed: timed.plan.harm)
    if measure:
        scale = best.scale
        for _ in range(2):
            found = _time(menu, select(scaled(menu, scale), _aimed(bounds), True), timer)
            if found.ratio <= limit:
                best = found
                break
            scale = found.scale
    if best.plan.harm > SAME * first.plan.harm:  # it was taken for the harm that was measured
        return best.plan
    rival = fewest_macs(menu, bounds, first.plan, select)
    return rival if timer.ratio(rival) <= best.ratio - FASTER else best.plan


def _rounds(menu: Menu, bounds: Sequence[Bound], timer: Timer, select: Select) -> list[_Timed]:
    """Return the plans that were chosen and timed, in order; the last ones hold the budget if any can."""
    limit, scale = _limit(menu, bounds), 1.0
    tried: list[_Timed] = []
    for _ in range(ROUNDS):
        try:
            plan = select(scaled(menu, scale), _aimed(bounds), False)
        except BudgetError:
            if not tried:
                raise
            return tried
        if any(plan == timed.plan for timed in tried):
            return tried
        tried.append(_time(menu, plan, timer))
        if limit * (1 - ENOUGH) <= tried[-1].ratio <= limit:
            return tried
        scale = tried[-1].scale
    return tried


def _time(menu: Menu, plan: Plan, timer: Timer) -> _Timed:
    ratio = timer.ratio(plan)
    predicted = 1 - menu.cost(menu.numbers(plan), "latency") / menu.whole("latency")
    return _Timed(plan, ratio, max(1 - ratio, 0.0) / predicted if predicted > 0 else 1.0)


def _limit(menu: Menu, bounds: Sequence[Bound]) -> float:
    """Return what may be measured, as a share of the original's time: a little less than the least bound on latency."""
    whole = menu.whole("latency")
    least = min(limit_of(bound, whole) / whole for bound in bounds if bound.metric == "latency")
    return least if least >= 1 else least * (1 - SAFE)


def _aimed(bounds: Sequence[Bound]) -> list[Bound]:
    """Return the bounds, those on latency a little lower."""
    found: list[Bound] = []
    for bound in bounds:
        if bound.metric != "latency":
            found.append(bound)
        elif isinstance(bound, Keep):
            found.append(bound if bound.fraction == 1 else replace(bound, fraction=bound.fraction * (1 - MARGIN)))
        else:
            found.append(replace(bound, value=bound.value * (1 - MARGIN)))
    return found


def scaled(menu: Menu, scale: float) -> Menu:
    """Return the menu with the predicted savings of time times a number."""
    columns = []
    for row in menu.layers:
        costs = row.costs["latency"]
        saved = scale * (costs[0] - costs)
        columns.append(costs[0] - np.sign(saved).astype(np.int64) * np.maximum(np.rint(np.abs(saved)).astype(np.int64), 1))
        columns[-1][costs == costs[0]] = costs[0]
    return menu.with_costs("latency", menu.whole("latency"), columns)


def fewest_macs(menu: Menu, bounds: Sequence[Bound], plan: Plan, select: Select) -> Plan:
    """Return the plan of fewest MACs that is predicted to do no more harm than a plan, within all bounds but those on latency.

    Args:
        menu: What may be done.
        bounds: All of them.
        plan: It.
        select: Chooses by a menu.
    """
    others = [bound for bound in bounds if bound.metric != "latency"]
    best, high = plan, plan.cost.macs / max(plan.original.macs, 1)
    low = menu.least("macs") / max(menu.whole("macs"), 1)
    for _ in range(CUTS if 0 < low < high else 0):
        middle = math.sqrt(low * high)
        try:
            found = select(menu, [Keep(middle, "macs"), *others], False)
        except BudgetError:
            low = middle
            continue
        if found.harm <= plan.harm:
            best, high = found, middle
        else:
            low = middle
    return best
