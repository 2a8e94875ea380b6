"""Step two, choose: a plan within a budget."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectrim.core.cost import Bound, Metric, bounds_of, limit_of, written
from spectrim.core.menu import Menu
from spectrim.core.plan import Plan
from spectrim.network.calling import undisturbed
from spectrim.pipeline.cache import Entry, Ledger
from spectrim.pipeline.hold import hold
from spectrim.pipeline.identity import method_identity
from spectrim.pipeline.prepare import Prepared, target_of
from spectrim.pipeline.prices import bounded, priced
from spectrim.pipeline.probe import network_probe
from spectrim.pipeline.stopwatch import Stopwatch
from spectrim.sensitivity.measured import Data
from spectrim.sensitivity.scores import MEASURED, columns


@undisturbed()
def choose(prepared: Prepared, budget: Bound | Sequence[Bound], *, measure: bool = True) -> Plan:
    """Choose a plan within a budget.

    Args:
        prepared: From `prepare`.
        budget: A hard bound on the whole network, `Keep` or `AtMost`, or a list of them, which all hold.
        measure: Whether a rank selection that measures networks may do so; else it chooses by predictions only.

    Returns:
        The plan; its `spent` says what choosing took.

    Raises:
        BudgetError: If nothing on the menu meets the budget.
        TypeError: If the budget is no hard bound.
        ValueError: If the rank selection holds one bound only, and there are several.
    """
    bounds, ledger = checked_bounds(prepared, budget), prepared.ledger()
    metrics = [bound.metric for bound in bounds]
    timed = "latency" in metrics
    where = target_of(prepared.config, prepared.example).describe() if timed else {}
    identity = method_identity(prepared.config.search)
    with ledger.piece(f"plan {written(bounds)} {measure} {prepared.config.settings()} {identity} {where}") as piece:
        if piece.entry is None:
            found = priced(prepared, metrics)
            menu, keep = bounded(found.menu, bounds)
            scores = scored(replace(found, menu=menu), keep.metric)
            ledger.add(scores.spent - prepared.spent)
            select = functools.partial(_selected, scores, ledger)
            if timed and measure:
                stopwatch, measures = Stopwatch.of(scores, ledger), network_probe(scores, ledger) is not None
                plan = hold(scores.menu, bounds, stopwatch, select, measure=measures)
            else:
                plan = select(scores.menu, bounds, measure)
            piece.entry = Entry({}, {"plan": plan.text()})
    return replace(Plan.from_json(piece.entry.numbers["plan"]), spent=ledger.spent)


def _selected(prepared: Prepared, ledger: Ledger, menu: Menu, bounds: Sequence[Bound], measure: bool) -> Plan:
    """Return the rank selection's plan within bounds.

    Args:
        prepared: From `prepare`.
        ledger: Of this step.
        menu: What it chooses from, with the columns that it needs.
        bounds: All of them are to hold.
        measure: Whether it may measure networks.
    """
    menu, keep = bounded(menu, bounds)
    prepared, search = replace(prepared, menu=menu), prepared.config.search
    with ledger.stage("search"):
        probe = network_probe(prepared, ledger) if measure else None
        chosen = check_choice(prepared, search.select(menu, keep, probe), bounds)
    if probe is not None:
        ledger.passed(**probe.passed())
    return menu.plan(chosen)


def checked_bounds(prepared: Prepared, budget: Bound | Sequence[Bound]) -> tuple[Bound, ...]:
    """Return the bounds of a budget, which the rank selection can hold.

    Raises:
        TypeError: If the budget is no hard bound.
        ValueError: If the rank selection holds one bound only, and there are several.
    """
    try:
        bounds = bounds_of(budget)
    except TypeError as error:
        raise TypeError(f"{error}; `maxdrop` takes MaxDrop(points, metric)") from None
    search = prepared.config.search
    if len(bounds) > 1 and not search.several:
        raise ValueError(
            f"{type(search).__name__} holds one budget, and {len(bounds)} were given; choose by Portfolio(), Knapsack() or "
            "Interaction(), or give one"
        )
    return bounds


def scored(prepared: Prepared, metric: Metric) -> Prepared:
    """Return what was prepared with the column that the rank selection looks at on the menu.

    Args:
        prepared: From `prepare`.
        metric: Of the costs over which a measured score spreads the options that it looks at.
    """
    score = prepared.config.search.score
    if score in (prepared.menu.layers[0].scores if prepared.menu.layers else (score,)):
        return prepared
    ledger, moments = prepared.ledger(), prepared.moments
    data = None if moments is None else Data(prepared.calibration, moments, prepared.harm)
    with ledger.piece(f"scores {score} {metric} {_offered(prepared.menu)}") as piece:
        if piece.entry is None:
            found: dict[str, Tensor] = {}
            with ledger.stage("search"):
                for column in columns(prepared.menu, score, metric, prepared.model, data):
                    found[str(len(found))] = torch.from_numpy(column)
                    ledger.tick("search", 0.99 * len(found) / len(prepared.menu.layers))
            if score in MEASURED:
                tried = sum(int(column.isfinite().sum()) - 1 for column in found.values())
                ledger.passed(forward=tried + 1.0 if score == "measured" else 1.0)
            piece.entry = Entry(found)
    scores = [piece.entry.tensors[str(index)].cpu().numpy() for index in range(len(prepared.menu.layers))]
    return replace(prepared, menu=prepared.menu.with_scores(score, scores), spent=prepared.spent + ledger.spent)


def _offered(menu: Menu) -> str:
    """Return how many options of each layer there are, which depends on the metrics that they pay in."""
    return " ".join(str(len(row.options)) for row in menu.layers)


def check_choice(prepared: Prepared, chosen: Any, bounds: Sequence[Bound]) -> list[int]:
    """Return what a rank selection, a third party's perhaps, has chosen, as whole numbers, if it kept its promise.

    Raises:
        ValueError: If it did not choose one option for each layer within all bounds.
    """
    menu, title = prepared.menu, type(prepared.config.search).__name__
    given = list(chosen) if isinstance(chosen, Iterable) else chosen
    whole = isinstance(given, list) and all(isinstance(index, (int, np.integer)) for index in given)
    if (
        not whole
        or len(given) != len(menu.layers)
        or not all(0 <= index < len(row.options) for index, row in zip(given, menu.layers, strict=True))
    ):
        raise ValueError(f"the rank selection {title} returned {given!r}; it must name one option of each layer by its number")
    for bound in bounds:
        if menu.cost(given, bound.metric) > limit_of(bound, menu.whole(bound.metric)):
            raise ValueError(f"the rank selection {title} broke {bound}: its choice costs {menu.cost(given, bound.metric):,}")
    return [int(index) for index in given]
