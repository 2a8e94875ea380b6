"""What the figures of a report need beyond its numbers: spectra, the time of each layer, bounds as records, the machine."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
from torch import nn

from spectrim.core.cost import Budget, Keep, MaxDrop, bounds_of
from spectrim.core.figures import Limit, Spectrum
from spectrim.core.layer import Layer
from spectrim.core.menu import RESPONSE, LayerMenu, Menu
from spectrim.core.plan import Option, Plan
from spectrim.network.calling import Example
from spectrim.network.copying import duplicate
from spectrim.pipeline.latency import formula
from spectrim.targets.base import Target, processor
from spectrim.targets.torch import Torch, forward

RANKS = 24  # of each spectrum, at most
RUNS = 10  # of each network, to time its layers

Times = Mapping[str, tuple[float, float]]


def limits(budget: Budget | None) -> tuple[Limit, ...]:
    """Return the bounds of a budget as records; of a plan of one's own there are none."""
    if budget is None:
        return ()
    if isinstance(budget, MaxDrop):
        return (Limit("MaxDrop", float(budget.points), budget.metric),)
    return tuple(
        Limit("Keep", float(bound.fraction), bound.metric)
        if isinstance(bound, Keep)
        else Limit("AtMost", float(bound.value), bound.metric)
        for bound in bounds_of(budget)
    )


def machine() -> str:
    """Return the CPU, its cores and the system, in words."""
    return f"{processor()}, {os.cpu_count()} cores, {platform.system()}"


def spectra(menu: Menu, plan: Plan) -> tuple[Spectrum, ...]:
    """Return what each decomposition would lose of each layer at each rank, as the menu has it.

    Args:
        menu: From `prepare`; one with a single rank of each layer, as that of a given plan, has no spectra.
        plan: Its ranks are among those kept.
    """
    return tuple(found for row in menu.layers for found in _of_layer(row, plan))


def _of_layer(row: LayerMenu, plan: Plan) -> Iterator[Spectrum]:
    numbers = range(1, len(row.options))
    for method, group in groupby(numbers, key=lambda number: row.options[number].method):
        each = list(group)
        if method is None or len(each) < 2:
            continue
        taken = plan.choices.get(row.layer.name)
        chosen = [i for i in each if taken and (row.options[i].method, row.options[i].rank) == (taken.method, taken.rank)]
        spread = np.unique(np.geomspace(1, len(each), min(RANKS, len(each))).round().astype(int)) - 1
        kept = sorted({*(each[index] for index in spread), *chosen})
        options = [row.options[number] for number in kept]
        yield Spectrum(
            row.layer.name,
            options[0].title,
            method.full_rank(row.layer.convolution),
            tuple(option.rank for option in options),
            tuple(option.cost.macs for option in options),
            tuple(float(f"{row.scores[RESPONSE][number]:.5g}") for number in kept),
        )


def row_times(
    target: Target, models: tuple[nn.Module, nn.Module], *, layers: Sequence[Layer], plan: Plan, example: Example, whole: float
) -> tuple[Times, str]:
    """Return the milliseconds of each layer in one forward before and after, and how they were found, in words.

    Eager PyTorch on the CPU tells where a layer begins and ends, so there they are measured. Other runtimes do not: there they
    are the target's formula, by which all layers of the original take the measured time together.

    Args:
        target: Where.
        models: The original network and the compressed one.
        layers: Those of the original that could be replaced.
        plan: What replaces them.
        example: One batch.
        whole: Measured milliseconds of the original.
    """
    if isinstance(target, Torch):
        elsewhere = any(weight.device.type != "cpu" for weight in models[0].parameters())
        if elsewhere or replace(target, device=None) != Torch(target.threads) or target.device not in (None, "cpu"):
            return {}, ""
        names = [layer.name for layer in layers]
        before, after = (_measured(model, names, example, target) for model in models)
        return {name: (before[name], after[name]) for name in before if name in after}, "measured in PyTorch, layer by layer"
    alone = {layer.name: Option(layer) for layer in layers}
    formulas = {name: (formula(target, old), formula(target, plan.choices.get(name, old))) for name, old in alone.items()}
    scale = whole / max(sum(old for old, _ in formulas.values()), 1e-30)
    found = {name: (scale * old, scale * new) for name, (old, new) in formulas.items()}
    return found, f"by a formula for {target.title}, not measured"


def _measured(model: nn.Module, names: Sequence[str], example: Example, target: Torch) -> dict[str, float]:
    """Return the median milliseconds that each module takes of one forward, all its calls together."""
    network = duplicate(model).eval()
    modules = dict(network.named_modules(remove_duplicate=False))
    names = [name for name in names if name in modules]  # one that was split stands elsewhere
    taken = dict.fromkeys(names, 0.0)
    clock = time.process_time if target.clock == "process" else time.perf_counter

    def add(name: str, sign: float, *_: Any) -> None:
        taken[name] += sign * 1000 * clock()

    for name in names:
        modules[name].register_forward_pre_hook(partial(add, name, -1.0))
        modules[name].register_forward_hook(partial(add, name, 1.0))
    runs = []
    for _ in range(1 + RUNS):
        taken.update(dict.fromkeys(names, 0.0))
        forward(network, example, set(), target.threads)
        runs.append(list(taken.values()))
    medians = np.median(runs[1:], axis=0)  # the first warms up
    return {name: float(value) for name, value in zip(names, medians, strict=True) if value > 0}
