"""The same menu under another score: what published rank selections look at in place of the predicted loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby

from torch import Tensor, nn

from spectrim.factorize import Factorization, Rank
from spectrim.layer import Layer
from spectrim.plan import Option, Plan
from spectrim.score.weights import energy, spectral, vbmf
from spectrim.search import Menu
from spectrim.surgery import working_weight

Score = Callable[[Factorization, Layer, Tensor, Sequence[Rank]], list[float]]
SCORES: dict[str, Score] = {"energy": energy, "spectral": spectral, "vbmf": vbmf}


def rescored(menu: Menu, score: str, model: nn.Module) -> Menu:
    """Return the menu with other harms; options and their order stay.

    Args:
        menu: From `build_options`.
        score: A name in `SCORES`.
        model: The original network.
    """
    rows = []
    for row in menu.options:
        weight = working_weight(row[0].layer, model.get_submodule(row[0].layer.name))
        new = [row[0]]
        for method, group in groupby(row[1:], key=lambda option: option.method):
            options = list(group)
            assert method is not None
            harms = SCORES[score](method, row[0].layer, weight, [option.rank for option in options])
            new += [replace(option, harm=harm) for option, harm in zip(options, harms, strict=True)]
        rows.append(tuple(new))
    return Menu(tuple(rows), menu.original)


def restored(plan: Plan, menu: Menu) -> Plan:
    """Return the plan with the harms of another menu of the same options."""
    harms = {(option.layer.name, option.method, option.rank): option for row in menu.options for option in row}
    choices: dict[str, Option] = {name: harms[name, option.method, option.rank] for name, option in plan.items()}
    return Plan(choices, plan.original)
