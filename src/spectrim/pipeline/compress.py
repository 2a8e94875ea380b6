"""compress(): the whole story in four steps. prepare -> choose -> realize -> account."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from spectrim.core.cost import Bound, Budget, BudgetError, MaxDrop, bounds_of, limit_of
from spectrim.core.plan import Plan
from spectrim.core.records import Report
from spectrim.core.score import holds
from spectrim.network.accuracy import Evaluate, Scorer
from spectrim.network.calling import Example, undisturbed
from spectrim.network.reorder import reordered
from spectrim.pipeline.account import account
from spectrim.pipeline.choose import choose
from spectrim.pipeline.config import Config
from spectrim.pipeline.maxdrop import maxdrop
from spectrim.pipeline.prepare import Prepared, prepare
from spectrim.pipeline.prices import priced
from spectrim.pipeline.realize import realize
from spectrim.pipeline.result import Result
from spectrim.pipeline.stopwatch import Stopwatch


@undisturbed()
def compress(  # noqa: PLR0913
    model: nn.Module,
    example: Example,
    *,
    budget: Budget | None = None,
    plan: Plan | None = None,
    calibration: Iterable[Any] | None = None,
    evaluate: Evaluate | Scorer | None = None,
    config: Config | None = None,
) -> Result:
    """Make a trained network smaller, within a budget or by a plan of one's own.

    Args:
        model: A trained network; never modified.
        example: A batch of inputs: a tensor, or a tuple or dict of tensors; costs are counted for one example of it.
        budget: `Keep(fraction, metric)`, `AtMost(value, metric)`, a list of these (all hold), or `MaxDrop(points, metric)`.
            With a plan it is checked, and may be left out.
        plan: A plan of one's own, such as an edited one: fitted and refitted exactly as a chosen one.
        calibration: Iterable of inputs or (inputs, targets); no labels are needed. Without it weights are approximated
            without looking at data.
        evaluate: Called with a network in eval mode, returns a number, larger is better, or a `Measurement` in a unit of its
            own, or a dict of these by name; or a dict of such functions. The first score decides, others are reported.
            MaxDrop requires it, and of a plain number that it is a fraction between 0 and 1. `Accuracy` also gives the
            standard error; a `Scorer` has scored the original already.
        config: How.

    Returns:
        The compressed network (stock torch modules, and `Pivot` where PivotSVD is used), the plan and the report.

    Raises:
        BudgetError: If the budget cannot be met (a ValueError).
        ValueError: If something given is unusable; the text says what.
        TypeError: If something given is of the wrong kind.
        RuntimeError: If the forward takes another path for other inputs, so that layers cannot be refitted to one another.
    """
    bounds: tuple[Bound, ...] = ()
    if not isinstance(budget, MaxDrop) and (plan is None or budget is not None):
        bounds = _bounds(budget)
    if plan is not None and not isinstance(plan, Plan):
        raise TypeError(f"the plan is {type(plan).__name__}; it must be a Plan, such as Plan.from_json(text)")
    if isinstance(budget, MaxDrop) and evaluate is None:
        raise ValueError("MaxDrop needs evaluate, a function from a network to its score; give one, or use Keep")
    prepared = prepare(model, example, calibration=calibration, config=config, plan=plan)
    scorer = None if evaluate is None else Scorer.of(evaluate, prepared.model)  # what is wrong with it is known at once
    if isinstance(budget, MaxDrop):
        assert scorer is not None
        scorer.check_drop(budget.points)
        if plan is None:
            return maxdrop(prepared, budget, scorer)
    if plan is None:
        chosen = choose(prepared, bounds)
    else:
        chosen = prepared.menu.plan([len(row.options) - 1 for row in prepared.menu.layers])
        _check_cost(prepared, chosen, bounds)
    realized = realize(prepared, chosen)
    report = account(prepared, chosen, realized, scorer, budget=budget)
    if isinstance(budget, MaxDrop):
        _check_drop(report, budget)
    return Result(reordered(realized.model, prepared.example), chosen, report)


def _bounds(budget: Any) -> tuple[Bound, ...]:
    """Return the hard bounds of a budget that is no MaxDrop.

    Raises:
        TypeError: If it is none.
    """
    try:
        return bounds_of(budget)
    except TypeError as error:
        raise TypeError(f"{error}, or MaxDrop(points, metric) alone") from None


def _check_cost(prepared: Prepared, plan: Plan, bounds: Sequence[Bound]) -> None:
    """Raise a BudgetError if a given plan costs more than a bound given with it."""
    menu = priced(prepared, [bound.metric for bound in bounds if bound.metric != "latency"]).menu
    for bound in bounds:
        if bound.metric == "latency":
            stopwatch = Stopwatch.of(prepared, prepared.ledger())
            whole, cost = stopwatch.whole(), int(stopwatch.whole() * stopwatch.ratio(plan))
        else:
            cost, whole = menu.cost(menu.numbers(plan), bound.metric), max(menu.whole(bound.metric), 1)
        if cost > limit_of(bound, whole):
            raise BudgetError(
                f"the given plan keeps {cost / whole:.4f} of the {bound.metric}, more than {bound} allows; lower ranks, or "
                "leave the budget out"
            )


def _check_drop(report: Report, budget: MaxDrop) -> None:
    """Raise a BudgetError if the network of a given plan loses more than the budget given with it."""
    score = report.selection
    if score is not None and not holds(score.drop, budget.points):
        raise BudgetError(f"the given plan {score.lost()}, more than {budget} allows; raise ranks, or leave the budget out")
