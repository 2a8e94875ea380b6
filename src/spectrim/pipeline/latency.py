"""Latency as a column of costs: a formula for every option, put right by whole networks timed on the target.

With U the target's formula summed over the parts of what stands in a layer's place, an option of method m takes s c_m U, and
the layer itself s U. What is left of the measured time of the original network, T - s sum(U), no plan changes. s and the c_m
are fitted to a few networks: the cheapest, and for each method one with its layers at about 0.5, 0.35 and 0.7 of their U in
turn. At half alone the ranks of many layers are those that a target likes best, and a method looks better than it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from spectrim.core.factorization import Factorization
from spectrim.core.menu import LayerMenu, Menu
from spectrim.core.plan import Option
from spectrim.pipeline.stopwatch import ROUGH, Stopwatch
from spectrim.targets.base import Target

DEPTHS = (0.5, 0.35, 0.7)  # of a layer's formula, in turn from layer to layer
WORTH = 0.1  # of the formula of all layers that a network has to replace to be timed for its method
CLIP = (0.7, 1.5)  # of what a method's options take beyond the formula
SHARE = (0.2, 1.0)  # of the time that layers can have, by the fit
EXPECTED = 0.2  # how far methods are from the formula, usually
NOISE = 0.02  # of the formula and of a measurement, in parts of the original's time


def latencies(menu: Menu, stopwatch: Stopwatch) -> tuple[int, list[np.ndarray]]:
    """Return the measured time of the original network, and that of every option of every layer, in whole nanoseconds.

    Args:
        menu: What may be done.
        stopwatch: Times networks.
    """
    whole, target = stopwatch.whole(), stopwatch.target
    units = [np.array([formula(target, option) for option in row.options]) for row in menu.layers]
    total = sum(float(unit[0]) for unit in units)
    if not total:
        return whole, [np.zeros(len(unit), dtype=np.int64) for unit in units]
    methods = list(dict.fromkeys(option.method for row in menu.layers for option in row.options[1:]))
    share, factors = 1.0, np.ones(len(methods))
    choices = calibrating(menu, units, methods)
    if choices:
        saved = np.array([1 - stopwatch.ratio(menu.plan(chosen), seconds=ROUGH) for chosen in choices])
        gone, there = _sums(menu, units, choices, methods)
        share, factors = fitted(saved, gone / total, there / total)
    each = {method: factor for method, factor in zip(methods, factors, strict=True)}
    columns = []
    for row, unit in zip(menu.layers, units, strict=True):
        right = np.array([1.0, *(each[option.method] for option in row.options[1:])])
        columns.append(np.rint(whole * share / total * right * unit).astype(np.int64))
    return whole, columns


def formula(target: Target, option: Option) -> float:
    """Return the target's formula, summed over what stands in a layer's place."""
    return sum(target.predict(part) for part in option.parts)


def calibrating(menu: Menu, units: Sequence[np.ndarray], methods: Sequence[Factorization | None]) -> list[list[int]]:
    """Return the choices whose networks are timed: the cheapest, and one a method, its layers at `DEPTHS` in turn.

    None comes twice, and methods that fit little of the network have none: an export takes seconds.

    Args:
        menu: What may be done.
        units: The formula for every option of each layer.
        methods: All on the menu.
    """
    choices = [[int(unit.argmin()) for unit in units]]
    for method in methods:
        depths = itertools.cycle(DEPTHS)
        chosen = [_near(row, unit, method, depths) for row, unit in zip(menu.layers, units, strict=True)]
        if sum(unit[0] for unit, index in zip(units, chosen, strict=True) if index) >= WORTH * sum(unit[0] for unit in units):
            choices.append(chosen)
    return [list(chosen) for chosen in dict.fromkeys(map(tuple, choices)) if any(chosen)]


def _near(row: LayerMenu, unit: np.ndarray, method: Factorization | None, depths: Iterator[float]) -> int:
    """Return the option of a method whose formula is nearest to the next share of the layer's; 0 if none is below it."""
    numbers = [i for i, option in enumerate(row.options) if i and option.method == method and unit[i] < unit[0]]
    if not numbers:
        return 0
    wanted = next(depths) * unit[0]
    return min(numbers, key=lambda index: abs(unit[index] - wanted))


def _sums(
    menu: Menu, units: Sequence[np.ndarray], choices: Sequence[Sequence[int]], methods: Sequence[Factorization | None]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the formula of the layers that each choice replaces, (choices,), and of what replaces them, (choices, methods)."""
    gone, there = np.zeros(len(choices)), np.zeros((len(choices), len(methods)))
    for number, chosen in enumerate(choices):
        for row, unit, index in zip(menu.layers, units, chosen, strict=True):
            if index:
                gone[number] += unit[0]
                there[number, methods.index(row.options[index].method)] += unit[index]
    return gone, there


def fitted(saved: np.ndarray, gone: np.ndarray, there: np.ndarray) -> tuple[float, np.ndarray]:
    """Return which share of the original's time its layers have, and each method's factor beyond the formula, clipped.

    Least squares of saved = share gone - there (share factors), in which factors near 1 are expected.

    Args:
        saved: Of the original's time by each network, measured, (N,).
        gone: Formula of the layers replaced, of that of all layers, (N,).
        there: The same of what replaces them, by method, (N, M).
    """
    ridge = NOISE / EXPECTED * np.eye(there.shape[1])
    rows = np.vstack([np.column_stack([gone - there.sum(1), -there]), np.column_stack([np.zeros(len(ridge)), ridge])])
    found, *_ = np.linalg.lstsq(rows, np.concatenate([saved, np.zeros(len(ridge))]), rcond=None)
    share = float(np.clip(found[0], *SHARE))
    return share, np.clip(1 + found[1:] / share, *CLIP)
