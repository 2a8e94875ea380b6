"""The exact optimum when harms add up: a multiple-choice knapsack over all methods and ranks of all layers."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from spectrim.cost import BudgetError, Keep, Metric
from spectrim.plan import Option, Plan
from spectrim.search._base import Menu, Probe, Search


@dataclass(frozen=True)
class Knapsack(Search):
    """Minimise the sum of predicted harms under the budget, one option per layer, by mixed-integer programming (HiGHS).

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
        """Return the plan of least total harm; exact to one part in a million of the harm."""
        limit = menu.allowed(budget)
        rows = [frontier(row, budget.metric) for row in menu.options]
        flat = [option for row in rows for option in row]
        if not flat:
            return menu.plan([])
        harms = np.array([option.harm for option in flat])
        costs = np.array([option.cost.of(budget.metric) for option in flat], dtype=float)
        owner = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        one_each = csr_array((np.ones(len(flat)), (owner, np.arange(len(flat)))), shape=(len(rows), len(flat)))
        unit = max(float(limit), 1.0)
        with _silent_stdout():
            solution = milp(
                harms / max(harms.max(), 1e-300),
                integrality=np.ones(len(flat)),
                bounds=Bounds(0, 1),
                constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(costs[None] / unit, -np.inf, limit / unit)],
                options={"mip_rel_gap": 1e-6, "time_limit": 60.0},
            )
        if solution.x is None:
            raise BudgetError(f"the solver found no plan: {solution.message}")
        picked = [int(np.flatnonzero(owner == row)[np.argmax(solution.x[owner == row])]) for row in range(len(rows))]
        return menu.plan(_repair(rows, [flat[index] for index in picked], limit, budget.metric))


def frontier(row: tuple[Option, ...], metric: Metric) -> list[Option]:
    """Return the options that no other beats in both cost and harm, cheapest first."""
    kept: list[Option] = []
    for option in sorted(row, key=lambda option: (option.cost.of(metric), option.harm)):
        if not kept or option.harm < kept[-1].harm:
            kept.append(option)
    return kept


def _repair(rows: list[list[Option]], chosen: list[Option], limit: int, metric: Metric) -> list[Option]:
    """Undo the solver's tolerance: while the integer cost is above the limit, take the step down that harms least."""
    chosen = list(chosen)
    while sum(option.cost.of(metric) for option in chosen) > limit:
        steps = [
            (cheaper.harm - option.harm, index, cheaper)
            for index, option in enumerate(chosen)
            for cheaper in rows[index]
            if cheaper.cost.of(metric) < option.cost.of(metric)
        ]
        _, index, cheaper = min(steps, key=lambda step: step[:2])
        chosen[index] = cheaper
    return chosen


@contextlib.contextmanager
def _silent_stdout() -> Iterator[None]:
    """Send the process's standard output nowhere: HiGHS prints a debugging line from C++ that no option turns off."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # there is no standard output
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
