"""What can be done to one layer: every method and rank that pays, and its menu once the predicted harms are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from spectrim.core.factorization import Factorization, Moments, Rank, as_tuple, fit_of, is_multiple, pays
from spectrim.core.layer import Layer
from spectrim.core.menu import RESPONSE, LayerMenu
from spectrim.core.plan import Option

ROUNDING = 1e-9  # how far below nothing a harm may come to lie by rounding
Offer = tuple[Factorization, list[Rank]]  # a method, and the ranks at which its harm is wanted
Multiple = (
    int | Callable[[int], int]
)  # of which ranks are multiples: a number, or from a layer's channels to what a device likes


def offers(
    layer: Layer, methods: Sequence[Factorization], moments: Moments | None, *, multiple_of: Multiple = 1
) -> list[Offer]:
    """Return the methods and ranks that pay on a layer.

    Args:
        layer: The layer.
        methods: The decompositions that compete.
        moments: Of this layer. With them every replacement has a corrected bias; where they hold no input covariance only
            methods that need none are offered.
        multiple_of: Only ranks that are multiples of this, as `steps` has it; methods that are fitted on a coarse grid are
            asked for all of the grid, since `layer_menu` finds the multiples between.
    """
    found: list[Offer] = []
    for method in methods:
        if moments is not None and moments.covariance is None and not method.response_only:
            continue
        if not fit_of(method, layer.convolution):
            continue
        each, shapes = steps(method, layer, multiple_of), layer.convolution
        plain = len(each) == 1 or max(each) == 1
        ranks = method.candidates(shapes) if plain else method.multiples(shapes, each)
        ranks = [rank for rank in ranks if pays(Option(layer, method, rank, 0.0, moments is not None).cost, layer.cost)]
        if ranks:
            found.append((method, ranks))
    return found


def steps(method: Factorization, layer: Layer, multiple_of: Multiple) -> tuple[int, ...]:
    """Return of what each entry of a method's rank must be a multiple on a layer.

    Args:
        method: One that fits the layer.
        layer: The layer.
        multiple_of: The number, which holds everywhere; or what a device likes, from the narrower side of a layer to a multiple
            of inner channels. Then that of one group is so much smaller as there are groups, and an entry that has no room for
            two such multiples may be any number.
    """
    shapes = layer.convolution
    limits = as_tuple(method.full_rank(shapes))
    if isinstance(multiple_of, int):
        return (multiple_of,) * len(limits)
    liked = multiple_of(min(shapes.channels))
    step = liked // math.gcd(liked, shapes.groups)
    return tuple(step if limit >= 2 * step else 1 for limit in limits)


def sound(losses: Any, method: Factorization, layer: Layer, ranks: Sequence[Rank]) -> list[float]:
    """Return the predicted harms that a method, a third party's perhaps, gives for these ranks of a layer.

    Raises:
        ValueError: If there is not one number for each rank, or one is negative, infinite or NaN.
    """
    what = f"{type(method).__name__}.losses() returned"
    try:
        harms = [float(loss) for loss in losses]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} {losses!r} for layer {layer.name!r}; it must return a list of numbers") from error
    if len(harms) != len(ranks):
        raise ValueError(f"{what} {len(harms)} numbers for {len(ranks)} ranks of layer {layer.name!r}; each needs one")
    largest = max((abs(harm) for harm in harms if math.isfinite(harm)), default=0.0)
    for rank, harm in zip(ranks, harms, strict=True):
        if not -ROUNDING * (1 + largest) <= harm < math.inf:
            raise ValueError(f"{what} {harm:g} for rank {rank} of layer {layer.name!r}; a harm is finite and not negative")
    return harms


def layer_menu(
    layer: Layer,
    offered: Sequence[Offer],
    harms: Sequence[Sequence[float]],
    *,
    bias: bool,
    multiple_of: Multiple = 1,
    more: Mapping[str, Sequence[Sequence[float]]] | None = None,
) -> LayerMenu:
    """Return the menu of one layer; its first option leaves the layer alone.

    Args:
        layer: The layer.
        offered: From `offers`.
        harms: Predicted harm of each method and rank.
        bias: Whether replacements have a corrected bias.
        multiple_of: Only ranks that are multiples of this, as `steps` has it.
        more: Other columns of scores by name, for the same methods and ranks.
    """
    names, tables = [RESPONSE, *(more or {})], [harms, *(more or {}).values()]
    options, columns = [Option(layer)], [[0.0] for _ in names]
    for number, (method, ranks) in enumerate(offered):
        scores = np.array([table[number] for table in tables])  # (columns, ranks)
        each = steps(method, layer, multiple_of)
        found = dict(zip(ranks, scores.T, strict=True)) | _between(ranks, scores, each[0])
        for rank in sorted(found):
            if is_multiple(rank, each):
                options.append(Option(layer, method, rank, 0.0, bias))
                for column, score in zip(columns, found[rank], strict=True):
                    column.append(float(score))
    menu = LayerMenu.of(options, columns[0])
    return replace(menu, scores={name: np.array(column) for name, column in zip(names, columns, strict=True)})


def _between(ranks: Sequence[Rank], scores: np.ndarray, multiple_of: int) -> dict[Rank, np.ndarray]:
    """Return the multiples between the ranks that were fitted, with scores interpolated in the logarithms of both.

    Methods without a closed form are fitted on a coarse grid, which has few multiples; what lies between is smooth (monotone
    cubic interpolation, Fritsch and Carlson 1980). Where any rank will do, finer steps than the grid's gain nothing.
    """
    least = 1e-4 * scores.max(1)  # below it the method is about to be exact, and the logarithm falls without end
    known = {
        rank: column for rank, column in zip(ranks, scores.T, strict=True) if isinstance(rank, int) and (column > least).all()
    }
    if multiple_of == 1 or len(known) < 2:
        return {}
    from scipy.interpolate import PchipInterpolator  # takes 2 s to import

    fitted = sorted(known)
    wanted = [rank for rank in range(multiple_of, fitted[-1], multiple_of) if fitted[0] < rank and rank not in known]
    curve = PchipInterpolator(np.log(fitted), np.log([known[rank] for rank in fitted]))
    return dict(zip(wanted, np.exp(curve(np.log(wanted))), strict=True)) if wanted else {}
