"""What options cost in the metrics of a budget, and the budget as a rank selection gets it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from spectrim.core.cost import Bound, Keep, Metric, limit_of
from spectrim.core.menu import LayerMenu, Menu
from spectrim.core.plan import Option
from spectrim.network.counting import stored
from spectrim.pipeline.latency import latencies
from spectrim.pipeline.prepare import Prepared
from spectrim.pipeline.stopwatch import Stopwatch

ORDER = 8  # bytes of a number in the order of a Pivot's channels


def priced(prepared: Prepared, metrics: Sequence[Metric]) -> Prepared:
    """Return what was prepared with a column of costs for each of these metrics on the menu.

    Args:
        prepared: From `prepare`.
        metrics: Of the budgets.
    """
    menu = prepared.menu
    if "bytes" in metrics and "bytes" not in menu.others:
        menu = menu.with_costs("bytes", stored(prepared.model), [_bytes(prepared.model, row) for row in menu.layers])
    ledger = prepared.ledger()
    if "latency" in metrics and "latency" not in menu.others:
        menu = menu.with_costs("latency", *latencies(menu, Stopwatch.of(prepared, ledger)))
    return prepared if menu is prepared.menu else replace(prepared, menu=menu, spent=prepared.spent + ledger.spent)


def _bytes(model: nn.Module, row: LayerMenu) -> np.ndarray:
    """Return the bytes of each option of a layer, (K,); a Pivot's order counts, though it may be taken by the layers behind."""
    module = model.get_submodule(row.layer.name)
    size = next(module.parameters()).element_size()

    def of(option: Option) -> int:
        pivots = sum(part.channels[0] for part in option.parts if part.kind == "Pivot")
        return option.cost.params * size + pivots * ORDER

    return np.array([stored(module), *(of(option) for option in row.options[1:])], dtype=np.int64)


def bounded(menu: Menu, bounds: Sequence[Bound]) -> tuple[Menu, Keep]:
    """Return the menu of what pays within these bounds, and the first as a rank selection gets it; the others are `Menu.also`.

    Args:
        menu: With a column of costs for the metric of each bound.
        bounds: All of them are to hold.

    Raises:
        BudgetError: If no choice meets one of them.
    """
    menu = menu.paying([bound.metric for bound in bounds])
    keeps = []
    for bound in bounds:
        menu.allowed(bound)  # says what cannot be met in the user's own words
        whole = menu.whole(bound.metric)
        keeps.append(bound if isinstance(bound, Keep) else Keep(min(1.0, limit_of(bound, whole) / whole), bound.metric))
    return replace(menu, also=tuple(keeps[1:])), keeps[0]
