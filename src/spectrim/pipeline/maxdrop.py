"""The most compression within a bound on the drop: a search over budgets, each chosen, realized and evaluated.

Which budget is tried next: inside a bracket that shrinks, where predicted harm says that the drop meets the bound.

Drops are taken for a power of the predicted harm, through the two budgets of the bracket (a secant in logarithms). Every
third budget, once one has broken the bound, is the bracket's middle, so that a prediction that misleads costs tries and
nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from spectrim.core.cost import BudgetError, Keep, MaxDrop, Metric
from spectrim.core.plan import Plan
from spectrim.core.progress import Spent
from spectrim.core.records import Score, Try
from spectrim.network.accuracy import Evaluate, Scorer
from spectrim.network.calling import undisturbed
from spectrim.pipeline.account import account
from spectrim.pipeline.choose import choose, scored
from spectrim.pipeline.prepare import Prepared
from spectrim.pipeline.probe import network_probe
from spectrim.pipeline.realize import Realized, realize
from spectrim.pipeline.result import Result

RESOLUTION = (
    1.02  # the search ends when the best budget is within this ratio of one that breaks the bound, or is expected to be
)
LEAST = 0.02  # points; a drop below it is noise
POINTS_PER_NAT = 40.0  # before anything is measured
CUTS = 12  # of the bracket, to find the budget of a predicted harm
MOST = 60  # budgets tried


@dataclass(frozen=True, eq=False)
class Trial:
    """One network that was evaluated."""

    plan: Plan
    realized: Realized
    score: Score


@undisturbed()
def maxdrop(
    prepared: Prepared,
    budget: MaxDrop,
    evaluate: Evaluate | Scorer,
    recover: Callable[[nn.Module], nn.Module] | None = None,
    *,
    start: Try | None = None,
    most: int = MOST,
) -> Result:
    """Find the most compression whose score stays within a bound; every network that could be returned has been evaluated.

    Args:
        prepared: From `prepare`.
        budget: The bound, and what to make small.
        evaluate: Called with a network in eval mode, returns a fraction between 0 and 1, larger is better.
        recover: Called with every compressed network before it is evaluated, returns the network to evaluate: fine-tuning
            after the cut. It may change what it is given.
        start: A budget that holds the bound already, and is to be undercut; by default the original network.
        most: Budgets tried at most.

    Returns:
        The smallest network found that holds the bound, its plan and report.

    Raises:
        BudgetError: If none does.
        ValueError: If evaluate returns no such fraction.
    """
    ledger = prepared.ledger()
    with ledger.stage("evaluate"):
        scorer = evaluate if isinstance(evaluate, Scorer) else Scorer(evaluate, prepared.model)
    if abs(scorer.mean) > 1:
        raise ValueError(f"evaluate returned {scorer.mean:g}; MaxDrop needs a fraction between 0 and 1, such as 0.917")
    metric, total = budget.metric, prepared.original.of(budget.metric)
    prepared = scored(prepared, metric)
    plans: dict[float, Plan] = {}
    trials: dict[str, Trial] = {}

    def planned(keep: float) -> Plan:
        if keep not in plans:
            plans[keep] = choose(prepared, Keep(keep, metric), measure=False)
            ledger.add(plans[keep].spent)
        return plans[keep]

    def tried(plan: Plan) -> Trial:
        name = plan.to_json()
        if name not in trials:  # budgets so close that they have the same plan are evaluated once
            realized = realize(prepared, plan)
            ledger.add(realized.spent)
            if recover is not None:
                with ledger.stage("recover"):
                    realized = replace(realized, model=recover(realized.model))
            with ledger.stage("evaluate"):
                trials[name] = Trial(plan, realized, scorer.score(realized.model))
            ledger.tick("budgets tried", min(0.99, len(trials) / 6))
        return trials[name]

    bracket = Bracket(least(prepared, metric), budget.points, nats=prepared.moments is not None and prepared.config.gradient)
    if start is not None:
        bracket.begin(start)
    best: Trial | None = None
    while bracket.tries < most and (keep := bracket.next(lambda keep: planned(keep).harm)) is not None:
        found = tried(planned(keep))
        if bracket.add(keep, found.plan.cost.of(metric) / total, found.plan.harm, found.score.drop):
            best = found
    if best is None:
        kept, drop = (1.0, 0.0) if not trials else (found.plan.cost.of(metric) / total, found.score.drop)
        raise BudgetError(
            f"{budget} cannot be met: keeping {100 * kept:.1f} % of the {metric} already loses {drop:.2f} points; allow more "
            "points, or give more calibration images"
        )
    if network_probe(prepared, ledger) is not None:  # what predictions alone just missed, measured choices may reach
        missed = Keep(max(bracket.low, bracket.high / RESOLUTION), metric)
        plan = choose(prepared, missed)
        ledger.add(plan.spent)
        if plan != planned(missed.fraction):
            found = tried(plan)
            best = found if found.score.drop <= budget.points + 1e-9 else best
    tries = tuple(Try(each.plan.cost.of(metric) / total, each.score.drop, each.plan.harm) for each in trials.values())
    best = Trial(replace(best.plan, spent=ledger.spent), replace(best.realized, spent=Spent()), best.score)
    report = account(prepared, best.plan, best.realized, best.score, budget=budget, tries=tries)
    return Result(best.realized.model, best.plan, report)


def least(prepared: Prepared, metric: Metric) -> float:
    """Return the smallest fraction that any plan keeps.

    Raises:
        BudgetError: If no method pays on any layer.
    """
    total, fewest = prepared.original.of(metric), prepared.menu.least(metric)
    if fewest == total:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(prepared.survey.skipped.items())[:3])
        raise BudgetError(f"nothing can be compressed: no method pays on any layer. {reasons}".strip())
    return max(fewest / total, 1e-6)


class Bracket:
    """The largest kept fraction that breaks the bound, the smallest that holds it, and their drops.

    Args:
        least: Smallest fraction that any plan keeps.
        points: The bound.
        nats: Whether predicted harms are nats, so that a first guess can be made from them.
    """

    def __init__(self, least: float, points: float, *, nats: bool) -> None:
        """Store the arguments."""
        self.low, self.high, self.points = least, 1.0, points
        self.broke: tuple[float, float] | None = None  # predicted harm and drop at `low`
        self.held: tuple[float, float] | None = None  # at `high`
        self.nats, self.tries = nats, 0

    def begin(self, found: Try) -> None:
        """Take in a budget that is known to hold the bound from elsewhere, with its plan's harm and drop."""
        self.high, self.held = found.kept, (found.harm, found.drop)

    def add(self, keep: float, kept: float, harm: float, drop: float) -> bool:
        """Take in what a budget gave; return whether it holds the bound.

        Args:
            keep: Budget.
            kept: Fraction that its plan keeps, at most `keep`.
            harm: Predicted.
            drop: Measured, in points.
        """
        self.tries += 1
        if drop <= self.points + 1e-9:
            self.high, self.held = min(keep, kept), (harm, drop)
            return True
        self.low, self.broke = keep, (harm, drop)
        return False

    def next(self, predict: Callable[[float], float]) -> float | None:
        """Return the budget to try, or None when that is not worth it.

        Args:
            predict: From a budget to the harm that its plan predicts; falls with the budget.
        """
        if self.high / self.low <= RESOLUTION:
            return None
        middle = math.sqrt(self.low * self.high)
        wanted = self._harm()
        if wanted is None or (self.tries % 3 == 2 and self.broke is not None):
            return middle
        low, high = self.low, self.high
        for _ in range(CUTS):
            guess = math.sqrt(low * high)
            low, high = (guess, high) if predict(guess) > wanted else (low, guess)
        if self.held is not None and high >= self.high / RESOLUTION:
            return None if self.held[1] > LEAST else middle
        margin = float(min(RESOLUTION**0.5, (self.high / self.low) ** 0.1))
        return min(self.high / margin, max(self.low * margin, high))

    def _harm(self) -> float | None:
        """Return the predicted harm at which the drop is expected to meet the bound."""
        held = self.held if self.held is not None and self.held[1] > LEAST and self.held[0] > 0 else None
        if held is None and self.broke is None:
            return self.points / POINTS_PER_NAT if self.nats and self.held is None else None
        power = 1.0
        if held is not None and self.broke is not None and self.broke[0] > held[0]:
            power = math.log(self.broke[1] / held[1]) / math.log(self.broke[0] / held[0])
        harm, drop = held or self.broke or (0.0, 1.0)
        return float(harm * (max(self.points, LEAST) / drop) ** (1 / min(4.0, max(0.25, power))))
