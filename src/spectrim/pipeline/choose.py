"""Step two, choose: a plan within a budget."""

from __future__ import annotations

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
from spectrim.pipeline.cache import Entry
from spectrim.pipeline.identity import method_identity
from spectrim.pipeline.prepare import Prepared
from spectrim.pipeline.prices import bounded, priced
from spectrim.pipeline.probe import network_probe
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
    bounds, search, ledger = checked_bounds(prepared, budget), prepared.config.search, prepared.ledger()
    metrics = [bound.metric for bound in bounds]
    name = f"plan {written(bounds)} {measure} {prepared.config.settings()} {method_identity(search)}"
    with ledger.piece(name) as piece:
        if piece.entry is None:
            found = priced(prepared, metrics)
            menu, keep = bounded(found.menu, bounds)
            scores = scored(replace(found, menu=menu), keep.metric)
            ledger.add(scores.spent - prepared.spent)
            with ledger.stage("search"):
                probe = network_probe(scores, ledger) if measure else None
                chosen = check_choice(scores, search.select(scores.menu, keep, probe), bounds)
            if probe is not None:
                ledger.passed(**probe.passed())
            piece.entry = Entry({}, {"plan": scores.menu.plan(chosen).text()})
    return replace(Plan.from_json(piece.entry.numbers["plan"]), spent=ledger.spent)


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
