"""Step two, choose: a plan within a budget."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectrim.core.cost import Keep, Metric
from spectrim.core.plan import Plan
from spectrim.network.calling import undisturbed
from spectrim.pipeline.cache import Entry
from spectrim.pipeline.identity import method_identity
from spectrim.pipeline.prepare import Prepared
from spectrim.pipeline.probe import network_probe
from spectrim.sensitivity.measured import Data
from spectrim.sensitivity.scores import MEASURED, columns


@undisturbed()
def choose(prepared: Prepared, budget: Keep, *, measure: bool = True) -> Plan:
    """Choose a plan within a budget.

    Args:
        prepared: From `prepare`.
        budget: A hard bound on the whole network.
        measure: Whether a rank selection that measures networks may do so; else it chooses by predictions only.

    Returns:
        The plan; its `spent` says what choosing took.

    Raises:
        BudgetError: If nothing on the menu meets the budget.
        TypeError: If the budget is no `Keep`.
    """
    if not isinstance(budget, Keep):
        raise TypeError(f"the budget is {budget!r}; it must be Keep(fraction, metric); `maxdrop` takes MaxDrop(points, metric)")
    search, ledger = prepared.config.search, prepared.ledger()
    with ledger.piece(f"plan {budget} {measure} {prepared.config.settings()} {method_identity(search)}") as piece:
        if piece.entry is None:
            scores = scored(prepared, budget.metric)
            ledger.add(scores.spent - prepared.spent)
            with ledger.stage("search"):
                probe = network_probe(prepared, ledger) if measure else None
                chosen = check_choice(scores, search.select(scores.menu, budget, probe), budget)
            if probe is not None:
                ledger.passed(**probe.passed())
            piece.entry = Entry({}, {"plan": scores.menu.plan(chosen).text()})
    return replace(Plan.from_json(piece.entry.numbers["plan"]), spent=ledger.spent)


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
    with ledger.piece(f"scores {score} {metric}") as piece:
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


def check_choice(prepared: Prepared, chosen: Any, budget: Keep) -> list[int]:
    """Return what a rank selection, a third party's perhaps, has chosen, as whole numbers, if it kept its promise.

    Raises:
        ValueError: If it did not choose one option for each layer within the budget.
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
    if menu.cost(given, budget.metric) > budget.fraction * menu.original.of(budget.metric) + 1e-6:
        raise ValueError(f"the rank selection {title} broke {budget}: its choice costs {menu.cost(given, budget.metric):,}")
    return [int(index) for index in given]
