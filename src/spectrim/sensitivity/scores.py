"""Columns of the menu beside the predicted harm: what published rank selections look at in its place."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np
from torch import Tensor, nn

from spectrim.core.cost import Metric
from spectrim.core.factorization import Factorization, Moments, Rank, by_groups
from spectrim.core.layer import Layer
from spectrim.core.menu import CAUTIOUS, CLOSED, RESPONSE, LayerMenu, Menu
from spectrim.factorize.algebra import eye_like
from spectrim.network.build import working_weight
from spectrim.sensitivity.measured import Data, similarity, single_harms
from spectrim.sensitivity.weights import energy, spectral, vbmf

WEIGHTS: dict[str, Callable[[Factorization, Layer, Tensor, Sequence[Rank]], list[float]]] = {
    "energy": energy,
    "spectral": spectral,
    "vbmf": vbmf,
}
MEASURED = ("measured", "similarity")
NAMES = (RESPONSE, CLOSED, CAUTIOUS, *WEIGHTS, "whitened", *MEASURED)  # every score that a rank selection may look at
FEW = 10  # options of each layer that a measured score looks at, besides leaving it alone


def columns(menu: Menu, score: str, metric: Metric, model: nn.Module, data: Data | None) -> Iterator[np.ndarray]:
    """Yield for each layer the scores of its options, (K,); leaving it alone has 0.

    Args:
        menu: The options.
        score: `energy`, `spectral` or `vbmf` look at weights, `whitened` at moments; `measured` and `similarity` measure
            `FEW` options of each layer, spread over their costs, and leave the others without a score.
        metric: Of the costs over which options are spread.
        model: The original network.
        data: None without calibration.

    Raises:
        ValueError: If there is no such score, or it needs calibration data and there is none.
    """
    if score in WEIGHTS:
        for row in menu.layers:
            weight = working_weight(row.layer, model.get_submodule(row.layer.name))
            yield _by_method(row, functools.partial(_weight_scores, score, row.layer, weight))
        return
    if score not in (*MEASURED, "whitened"):
        known = ", ".join(NAMES)
        raise ValueError(f"the rank selection looks at the score {score!r}, which nothing computes; there are {known}")
    if data is None:
        raise ValueError("this rank selection looks at calibration images; give calibration, or take Knapsack, Energy or ALDS")
    if score == "whitened":
        for row in menu.layers:
            module = model.get_submodule(row.layer.name)
            yield _whitened(row, working_weight(row.layer, module), data.moments[row.layer.name])
        return
    chosen = [few(row, metric) for row in menu.layers]
    rows = [[row.options[index] for index in numbers] for row, numbers in zip(menu.layers, chosen, strict=True)]
    measure = single_harms if score == "measured" else similarity
    for row, numbers, values in zip(menu.layers, chosen, measure(model, rows, data), strict=True):
        column = np.full(len(row.options), np.nan)
        column[0], column[numbers] = 0.0, values
        yield column


def few(row: LayerMenu, metric: Metric) -> np.ndarray:
    """Return the numbers of at most `FEW` options of the frontier and the cheapest, evenly spread over the kept fractions."""
    best = [index for index in row.frontier(metric) if index]
    if not best:
        return np.array([], dtype=np.int64)
    costs = row.costs[metric]
    wanted = [costs[0] * (step + 0.5) / FEW for step in range(FEW)]
    near = [min(best, key=lambda index: abs(costs[index] - cost)) for cost in wanted]
    return np.array(list(dict.fromkeys([best[0], *near])))  # the cheapest, so that every budget stays possible


def _whitened(row: LayerMenu, weight: Tensor, moments: Moments) -> np.ndarray:
    """Return the share of the output's variance that each option loses, all outputs weighing the same."""
    eye = eye_like(moments.gradient.shape[1], moments.gradient).expand_as(moments.gradient)
    whole = 0.5 * float(moments.response.diagonal(dim1=1, dim2=2).sum())
    plain = replace(moments, gradient=eye)
    parts = list(by_groups(weight, plain))

    def shares(method: Factorization, ranks: Sequence[Rank]) -> list[float]:
        losses = np.sum([method.losses(*(kernel, ranks, norm)) for kernel, norm in parts], axis=0)
        return list(losses / max(whole, 1e-30))

    return _by_method(row, shares)


def _weight_scores(score: str, layer: Layer, weight: Tensor, method: Factorization, ranks: Sequence[Rank]) -> list[float]:
    return WEIGHTS[score](method, layer, weight, ranks)


def _by_method(row: LayerMenu, scores: Callable[[Factorization, Sequence[Rank]], list[float]]) -> np.ndarray:
    found = [0.0]
    for method, group in groupby(row.options[1:], key=lambda option: option.method):
        assert method is not None
        found += scores(method, [option.rank for option in group])
    return np.array(found)
