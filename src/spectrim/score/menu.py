"""The menu: for every layer, every method and rank that pays, with its cost and predicted harm in one currency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import numpy as np
from scipy.interpolate import PchipInterpolator
from torch import nn

from spectrim.factorize import Factorization, Moments, Rank, describe
from spectrim.factorize._base import as_tuple, pays
from spectrim.layer import Layer
from spectrim.plan import Option
from spectrim.surgery import working_weight

Harms = list[list[float]]  # by method and rank


def build_options(
    layer: Layer,
    module: nn.Module,
    methods: Sequence[Factorization],
    *,
    moments: Moments | None = None,
    multiple_of: int = 1,
    once: Callable[[str, Callable[[], Harms]], Harms] = lambda name, work: work(),
) -> tuple[Option, ...]:
    """Return all options of one layer, a row of a `Menu`; the first leaves the layer alone.

    Args:
        layer: The layer.
        module: It, with its weight.
        methods: The decompositions that compete.
        moments: Of this layer, from `statistics`; harms are then nats and every replacement has a corrected bias. Without
            them harms are relative squared weight errors.
        multiple_of: Only ranks that are multiples of this.
        once: Given a name for the options and what finds their harms, returns these, perhaps from a cache.
    """
    bias = moments is not None
    offers: list[tuple[Factorization, list[Rank]]] = []
    for method in methods:
        if moments is not None and moments.covariance is None and not method.response_only:
            continue
        ranks = method.candidates(layer.convolution)
        ranks = [rank for rank in ranks if isinstance(rank, int) or _allowed(rank, multiple_of)]  # the others: see `_between`
        ranks = [rank for rank in ranks if pays(Option(layer, method, rank, 0.0, bias).cost, layer.cost)]
        if ranks:
            offers.append((method, ranks))

    def work() -> Harms:
        weight = working_weight(layer, module)
        return [method.losses(weight, ranks, moments) for method, ranks in offers]

    row = [Option(layer)]
    for (method, ranks), harms in zip(
        offers, once(f"{layer.name} {[(describe(method), ranks) for method, ranks in offers]}", work), strict=True
    ):
        found = dict(zip(ranks, harms, strict=True)) | _between(ranks, harms, multiple_of)
        row += [Option(layer, method, rank, found[rank], bias) for rank in sorted(found) if _allowed(rank, multiple_of)]
    return tuple(row)


def _between(ranks: Sequence[Rank], harms: Sequence[float], multiple_of: int) -> dict[Rank, float]:
    """Return the multiples between the ranks that were fitted, with harms interpolated in the logarithms of both.

    Methods without a closed form are fitted on a coarse grid, which has few multiples; what lies between is smooth (monotone
    cubic interpolation, Fritsch and Carlson 1980). Where any rank will do, finer steps than the grid's gain nothing.
    """
    least = 1e-4 * max(harms)  # below it the method is about to be exact, and the logarithm falls without end
    known = {rank: harm for rank, harm in zip(ranks, harms, strict=True) if isinstance(rank, int) and harm > least}
    if multiple_of == 1 or len(known) < 2:
        return {}
    fitted = sorted(known)
    wanted = [rank for rank in range(multiple_of, fitted[-1], multiple_of) if fitted[0] < rank and rank not in known]
    curve = PchipInterpolator(np.log(fitted), np.log([known[rank] for rank in fitted]))
    return dict(zip(wanted, np.exp(curve(np.log(wanted))).tolist(), strict=True)) if wanted else {}


def excluded(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a layer's name matches one of the patterns, such as `head*`."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _allowed(rank: Rank, multiple_of: int) -> bool:
    return all(number % multiple_of == 0 for number in as_tuple(rank))
