"""The menu: for every layer, every method and rank that pays, with its cost and predicted harm in one currency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

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
        ranks = [rank for rank in method.candidates(layer.convolution) if _allowed(rank, multiple_of)]
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
        row += [Option(layer, method, rank, harm, bias) for rank, harm in zip(ranks, harms, strict=True)]
    return tuple(row)


def excluded(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a layer's name matches one of the patterns, such as `head*`."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _allowed(rank: Rank, multiple_of: int) -> bool:
    return all(number % multiple_of == 0 for number in as_tuple(rank))
