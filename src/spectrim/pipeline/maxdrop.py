"""The most compression within a bound on the drop: a search over budgets, each chosen, realized and evaluated."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from spectrim.core.cost import COUNTED, BudgetError, Keep, MaxDrop, Metric
from spectrim.core.figures import Try
from spectrim.core.plan import Plan
from spectrim.core.progress import Spent
from spectrim.core.score import POINTS, Score, holds
from spectrim.network.accuracy import Evaluate, Scorer
from spectrim.network.calling import undisturbed, unwrap
from spectrim.network.reorder import reordered
from spectrim.pipeline.account import account
from spectrim.pipeline.bracket import RESOLUTION, Bracket, noise_of
from spectrim.pipeline.choose import choose, scored
from spectrim.pipeline.prepare import Prepared
from spectrim.pipeline.prices import priced
from spectrim.pipeline.probe import network_probe
from spectrim.pipeline.realize import Realized, realize
from spectrim.pipeline.result import Result
from spectrim.pipeline.stopwatch import Stopwatch

LOG = logging.getLogger(__name__)
MOST = 60  # budgets tried

Recover = Callable[[nn.Module], nn.Module]


@undisturbed()
def maxdrop(
    prepared: Prepared,
    budget: MaxDrop,
    evaluate: Evaluate | Scorer,
    recover: Recover | None = None,
    *,
    start: Try | None = None,
    most: int = MOST,
) -> Result:
    """Find the most compression whose score stays within a bound; every network that could be returned has been evaluated.

    Args:
        prepared: From `prepare`.
        budget: The bound, and what to make small.
        evaluate: Called with a network in eval mode, returns a fraction between 0 and 1, larger is better, or a `Measurement`
            in another unit, in which the bound then is; or a dict of these by name, of which the first decides.
        recover: Called with every compressed network before it is evaluated, returns the network to evaluate: fine-tuning
            after the cut. It may change what it is given.
        start: A budget that holds the bound already, and is to be undercut; by default the original network.
        most: Budgets tried at most.

    Returns:
        The smallest network found that holds the bound, its plan and report.

    Raises:
        BudgetError: If none does.
        ValueError: If evaluate returns no such score.
    """
    metric, ledger = budget.metric, prepared.ledger()
    with ledger.stage("evaluate"):
        scorer = Scorer.of(evaluate, prepared.model)
    scorer.check_drop(budget.points)
    prepared = priced(prepared, [metric])
    trials = _Trials(scored(prepared, metric), metric, scorer, recover)
    in_points, nats = scorer.unit == POINTS, prepared.moments is not None and prepared.config.gradient
    noise = noise_of(budget.points, scorer.mean, scorer.unit)
    bracket = Bracket(least(prepared, metric), budget.points, nats=nats and in_points, noise=noise)
    if start is not None:
        bracket.begin(start)
    best: Trial | None = None
    while bracket.tries < most and (keep := bracket.next(lambda keep: trials.plan(keep).harm)) is not None:
        found = trials.measure(trials.plan(keep))
        if bracket.add(keep, trials.kept(found.plan), found.plan.harm, found.score.drop):
            best = found
    if best is None:
        raise BudgetError(f"{budget} cannot be met: {trials.last()}; allow more, or give more calibration images")
    if (
        bracket.tries < most and network_probe(prepared, ledger) is not None
    ):  # measured choices may reach what predictions missed
        missed = Keep(max(bracket.low, bracket.high / RESOLUTION), metric)
        plan = choose(trials.prepared, missed)
        trials.spent += plan.spent
        if plan != trials.plan(missed.fraction):
            found = trials.measure(plan)
            best = found if holds(found.score.drop, budget.points) else best
    tries = trials.timed()
    plan = replace(best.plan, spent=trials.spent + ledger.spent)
    realized = replace(best.realized, spent=Spent())
    report = account(trials.prepared, plan, realized, best.score, budget=budget, tries=tries)
    return Result(reordered(realized.model, trials.prepared.example), plan, report)


@dataclass(frozen=True, eq=False)
class Trial:
    """One network that was evaluated."""

    plan: Plan
    realized: Realized
    score: Score


def _recovered(recover: Recover, small: nn.Module) -> nn.Module:
    """Return the network that the user's function makes of a compressed one, without the wrapper that it may come in.

    Raises:
        TypeError: If it returns no network.
        ValueError: If it returns a network with other parameters or buffers.
    """
    names = set(small.state_dict())
    found: object = recover(small)
    if not isinstance(found, nn.Module):
        raise TypeError(f"recover returned {type(found).__name__}; it must return the network given, or a copy")
    model = unwrap(found)
    other = sorted(names ^ set(model.state_dict()))
    if other:
        raise ValueError(
            f"recover returned a network with other parameters or buffers ({', '.join(other[:3])}); only values may change"
        )
    return model


class _Trials:
    """Plans and networks by budget, each made once, and what they took."""

    def __init__(self, prepared: Prepared, metric: Metric, scorer: Scorer, recover: Recover | None) -> None:
        self.prepared, self.metric, self.scorer, self.recover = prepared, metric, scorer, recover
        self.plans: dict[float, Plan] = {}
        self.found: dict[str, Trial] = {}
        self.spent = Spent()

    def plan(self, keep: float) -> Plan:
        """Return the plan that predictions choose for a budget."""
        if keep not in self.plans:
            self.plans[keep] = choose(self.prepared, Keep(keep, self.metric), measure=False)
            self.spent += self.plans[keep].spent
        return self.plans[keep]

    def measure(self, plan: Plan) -> Trial:
        """Return the evaluated network of a plan; budgets so close that they have the same plan are evaluated once."""
        name = plan.text()
        if name not in self.found:
            ledger, realized = self.prepared.ledger(), realize(self.prepared, plan)
            if self.recover is not None:
                with ledger.stage("recover"):
                    realized = replace(realized, model=_recovered(self.recover, realized.model))
            with ledger.stage("evaluate"):
                score = self.scorer.score(realized.model)
            self.found[name] = Trial(plan, realized, score)
            LOG.info("%.1f %% of the %s kept: %s %s", 100 * self.kept(plan), self.metric, score.name, score.text())
            self.spent += realized.spent + ledger.spent
            ledger.tick("budgets tried", min(0.99, len(self.found) / 6))
        return self.found[name]

    def kept(self, plan: Plan) -> float:
        """Return the fraction that a plan keeps."""
        menu = self.prepared.menu
        return menu.cost(menu.numbers(plan), self.metric) / menu.whole(self.metric)

    def tries(self) -> tuple[Try, ...]:
        """Return every budget tried, in order."""
        return tuple(self._try(each.plan, each.score) for each in self.found.values())

    def timed(self) -> tuple[Try, ...]:
        """Return every budget tried, with its measured time where the user said on what it counts."""
        if self.prepared.config.target is None:
            return self.tries()
        ledger = self.prepared.ledger()
        stopwatch = Stopwatch.of(self.prepared, ledger)
        try:
            times = [stopwatch.ratio(each.plan) for each in self.found.values()]
        except ValueError:  # the networks cannot be exported; the report's note on its times says why
            return self.tries()
        self.spent += ledger.spent
        return tuple(replace(tried, time=time) for tried, time in zip(self.tries(), times, strict=True))

    def _try(self, plan: Plan, score: Score) -> Try:
        whole = self.prepared.original
        shares = [plan.cost.of(metric) / max(whole.of(metric), 1) for metric in COUNTED]
        return Try(self.kept(plan), score.drop, plan.harm, score.standard_error, *shares)

    def last(self) -> str:
        """Return what the last budget tried has lost, in words."""
        if not self.found:
            return "there is no smaller budget to try"
        found = list(self.found.values())[-1]
        return f"keeping {100 * self.kept(found.plan):.1f} % of the {self.metric} already {found.score.lost()}"


def least(prepared: Prepared, metric: Metric) -> float:
    """Return the smallest fraction that any plan keeps.

    Raises:
        BudgetError: If no method pays on any layer.
    """
    total, fewest = prepared.menu.whole(metric), prepared.menu.least(metric)
    if fewest == total:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(prepared.survey.skipped.items())[:3])
        raise BudgetError(f"nothing can be compressed: no method pays on any layer. {reasons}".strip())
    return max(fewest / total, 1e-6)
