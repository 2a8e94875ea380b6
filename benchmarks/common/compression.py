"""A network at a budget, how it does on test images and what it takes, as the row of a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

import spectrim as st
from common.provenance import peak, reset_peak
from common.scores import Judge
from spectrim.core.cost import COUNTED
from spectrim.core.progress import Spent
from spectrim.network.accuracy import Evaluate, Scorer

Outcome = tuple[dict[str, Any], st.Plan, nn.Module]  # what is told, the plan and the network


def kept(plan: st.Plan) -> dict[str, float]:
    """Return the fractions that a plan keeps, and the harm that it predicts."""
    return {f"{metric} kept": plan.cost.of(metric) / plan.original.of(metric) for metric in COUNTED} | {"predicted": plan.harm}


def took(spent: Spent) -> dict[str, float]:
    """Return the seconds of everything but evaluations and reports, and the passes over the calibration images."""
    seconds = sum(seconds for stage, seconds in spent.seconds.items() if stage not in ("evaluate", "latency", "report"))
    passes = {f"{direction} passes": spent.passes.get(direction, 0.0) for direction in ("forward", "backward")}
    return {"search seconds": seconds, **passes}


def compressed(prepared: st.Prepared, budget: st.Keep, judge: Judge) -> Outcome:
    """Return what is told of a budget; what it took counts moments and menu, which other budgets share."""
    reset_peak()
    plan = st.choose(prepared, budget)
    realized = st.realize(prepared, plan)
    memory, row = peak(), judge.compare(realized.model)
    spent = prepared.spent + plan.spent + realized.spent
    return {**row, **kept(plan), **took(spent), "peak memory, MiB": memory}, plan, realized.model


def most_compressed(prepared: st.Prepared, budget: st.MaxDrop, evaluate: Evaluate | Scorer, judge: Judge) -> Outcome:
    """Return what is told of the most compression within a bound on the images of `evaluate`."""
    result = st.maxdrop(prepared, budget, evaluate)
    report, chosen = result.report, result.report.selection
    assert chosen is not None
    row = {**judge.compare(result.model), **kept(result.plan), **took(Spent(report.seconds, report.passes))}
    selection = {"held-out drop": chosen.drop, "held-out standard error": chosen.standard_error}
    return {**row, **selection, "budgets tried": len(report.tries)}, result.plan, result.model


def milliseconds(models: Sequence[nn.Module], example: Tensor, target: st.Target, seconds: float = 1.5) -> list[float]:
    """Return the median time of one forward of each network, in turn on a target."""
    rows = st.bench(models, example, targets=(target,), seconds=seconds).rows
    return [(row.process if row.clock == "process" else row.wall).median_ms for row in rows]
