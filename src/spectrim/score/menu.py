"""The menu: for every layer, every method and rank that pays, with its cost and predicted harm in one currency."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from spectrim.factorize import Factorization, Moments, Rank
from spectrim.factorize._base import as_tuple, pays
from spectrim.layer import Layer
from spectrim.plan import Option
from spectrim.surgery import working_weight


def build_options(
    model: nn.Module,
    layers: Sequence[Layer],
    methods: Sequence[Factorization],
    *,
    moments: Mapping[str, Moments] | None = None,
    multiple_of: int = 1,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[tuple[Option, ...], ...]:
    """Return all options of all layers, what a `Menu` is made of; the first of each leaves the layer alone.

    Args:
        model: The network.
        layers: The layers that may be changed.
        methods: The decompositions that compete.
        moments: From `statistics`; harms are then nats and every replacement has a corrected bias. Without them harms are
            relative squared weight errors.
        multiple_of: Only ranks that are multiples of this.
        progress: Called with the share done after each layer.
    """
    rows = []
    for done, layer in enumerate(layers, 1):
        weight = working_weight(layer, model.get_submodule(layer.name))
        moment = None if moments is None else moments[layer.name]
        row = [Option(layer)]
        for method in methods:
            if moment is not None and moment.covariance is None and not method.response_only:
                continue
            ranks = [rank for rank in method.candidates(layer) if _allowed(rank, multiple_of)]
            options = [Option(layer, method, rank, 0.0, moment is not None) for rank in ranks]
            ranks = [option.rank for option in options if pays(option.cost, layer.cost)]
            if ranks:
                harms = method.losses(weight, ranks, moment)
                row += [Option(layer, method, rank, harm, moment is not None) for rank, harm in zip(ranks, harms, strict=True)]
        rows.append(tuple(row))
        progress(done / len(layers))
    return tuple(rows)


def excluded(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a layer's name matches one of the patterns, such as `head*`."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _allowed(rank: Rank, multiple_of: int) -> bool:
    return all(number % multiple_of == 0 for number in as_tuple(rank))
