"""The same menu under another score: what published rank selections look at in place of the predicted loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from torch import Tensor, nn

from spectrim.cost import Metric
from spectrim.factorize import Factorization, Moments, Rank
from spectrim.harm import Harm, output_harm
from spectrim.layer import Example, Layer
from spectrim.plan import Option, Plan
from spectrim.score.measured import similarity, single_harms
from spectrim.score.weights import energy, spectral, vbmf
from spectrim.search import Menu
from spectrim.search.knapsack import frontier
from spectrim.surgery import working_weight

Score = Callable[[Factorization, Layer, Tensor, Sequence[Rank]], list[float]]
SCORES: dict[str, Score] = {"energy": energy, "spectral": spectral, "vbmf": vbmf}
MEASURED = {"measured": single_harms, "similarity": similarity}
FEW = 10  # options of each layer that a measured score looks at, besides leaving it alone


@dataclass(frozen=True)
class Data:
    """What scores may look at besides weights.

    Attributes:
        batches: Calibration inputs.
        moments: From `statistics`.
        harm: See `spectrim.harm`.
    """

    batches: Sequence[Example]
    moments: Mapping[str, Moments]
    harm: Harm = output_harm


def rescored(menu: Menu, score: str, model: nn.Module, metric: Metric, data: Data | None) -> Menu:
    """Return the menu with other harms. Measured scores keep `FEW` options of each layer, spread over their costs.

    Args:
        menu: From `build_options`.
        score: A name in `SCORES` or `MEASURED`, or `whitened`.
        model: The original network.
        metric: Of the costs over which options are spread.
        data: None without calibration.

    Raises:
        ValueError: If the score needs calibration data and there is none.
    """
    if score in SCORES:
        return Menu(tuple(_by_weights(row, score, model) for row in menu.options), menu.original)
    if data is None:
        raise ValueError("this rank selection looks at calibration images; give calibration, or take Knapsack, Energy or ALDS")
    if score == "whitened":
        return Menu(tuple(_whitened(row, model, data.moments[row[0].layer.name]) for row in menu.options), menu.original)
    rows = [few(row, metric) for row in menu.options]
    values = MEASURED[score](model, rows, data.batches, data.moments, data.harm)
    return Menu(
        tuple(
            (row[0], *(replace(option, harm=value) for option, value in zip(row[1:], found, strict=True)))
            for row, found in zip(rows, values, strict=True)
        ),
        menu.original,
    )


def restored(plan: Plan, menu: Menu) -> Plan:
    """Return the plan with the harms of another menu of the same options."""
    harms = {(option.layer.name, option.method, option.rank): option for row in menu.options for option in row}
    choices: dict[str, Option] = {name: harms[name, option.method, option.rank] for name, option in plan.items()}
    return Plan(choices, plan.original)


def few(row: tuple[Option, ...], metric: Metric) -> list[Option]:
    """Return "leave it" and at most `FEW` options of the frontier, evenly spread over the kept fractions."""
    best = [option for option in frontier(row, metric) if option.method is not None]
    whole = row[0].cost.of(metric)
    wanted = [whole * (step + 0.5) / FEW for step in range(FEW)]
    near = [min(best, key=lambda option: abs(option.cost.of(metric) - cost)) for cost in wanted] if best else []
    cheapest = best[:1]  # so that every budget that the menu can meet stays possible
    return [row[0], *{id(option): option for option in [*cheapest, *near]}.values()]


def _by_weights(row: tuple[Option, ...], score: str, model: nn.Module) -> tuple[Option, ...]:
    weight = working_weight(row[0].layer, model.get_submodule(row[0].layer.name))
    return _by_method(row, lambda method, ranks: SCORES[score](method, row[0].layer, weight, ranks))


def _whitened(row: tuple[Option, ...], model: nn.Module, moments: Moments) -> tuple[Option, ...]:
    """Return the row with the share of the output's variance that each option loses, all outputs weighing the same."""
    weight = working_weight(row[0].layer, model.get_submodule(row[0].layer.name))
    eye = moments.gradient.new_zeros(moments.gradient.shape)
    eye.diagonal(dim1=1, dim2=2).fill_(1.0)
    whole = 0.5 * float(moments.response.diagonal(dim1=1, dim2=2).sum())
    plain = replace(moments, gradient=eye)
    return _by_method(row, lambda method, ranks: [loss / max(whole, 1e-30) for loss in method.losses(weight, ranks, plain)])


def _by_method(row: tuple[Option, ...], harms: Callable[[Factorization, Sequence[Rank]], list[float]]) -> tuple[Option, ...]:
    new = [row[0]]
    for method, group in groupby(row[1:], key=lambda option: option.method):
        options = list(group)
        assert method is not None
        values = harms(method, [option.rank for option in options])
        new += [replace(option, harm=value) for option, value in zip(options, values, strict=True)]
    return tuple(new)
