"""What can be done to a network: every layer, its cost, its spectrum, which methods fit it, and why the others do not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from rich.table import Table
from torch import nn

from spectrim.cost import Cost
from spectrim.factorize import (
    CP,
    ChannelSVD,
    Factorization,
    InputSVD,
    SpatialSVD,
    TensorTrain,
    TiledSVD,
    Tucker2,
    describe,
)
from spectrim.layer import Example, Layer, survey, unwrap
from spectrim.surgery import cost, working_weight

ALL: tuple[Factorization, ...] = (
    ChannelSVD(),
    InputSVD(),
    SpatialSVD(),
    SpatialSVD(axis=1),
    Tucker2(),
    CP(),
    TensorTrain(),
    TiledSVD(),
)


@dataclass(frozen=True)
class LayerView:
    """One layer.

    Attributes:
        layer: Its shapes.
        cost: Its cost for one example.
        rank_90, rank_99: Singular values of the lowered kernel (of one group) that hold 90 and 99 % of its energy.
        full_rank: All of them.
        methods: Method to the largest rank that pays.
        reasons: The other methods, and why they do not fit.
    """

    layer: Layer
    cost: Cost
    rank_90: int
    rank_99: int
    full_rank: int
    methods: dict[str, str]
    reasons: dict[str, str]


@dataclass(frozen=True)
class Inspection:
    """All layers, the total cost, and the weighted modules that cannot be factorized with their reasons."""

    layers: tuple[LayerView, ...]
    skipped: dict[str, str]
    total: Cost

    def table(self) -> Table:
        """Return a terminal table."""
        table = Table(title=f"{self.total.params:,} parameters, {self.total.macs:,} MACs", title_justify="left")
        for name in ("layer", "kind", "weight"):
            table.add_column(name, overflow="fold")
        for name in ("params", "MACs", "rank", "for 90 %", "for 99 %"):
            table.add_column(name, justify="right")
        table.add_column("methods, largest rank that pays", overflow="fold")
        for view in self.layers:
            numbers = (view.cost.params, view.cost.macs, view.full_rank, view.rank_90, view.rank_99)
            methods = ", ".join(f"{name} {rank}" for name, rank in view.methods.items()) or "none pays"
            shape = " x ".join(map(str, view.layer.weight))
            table.add_row(view.layer.name, view.layer.kind, shape, *(f"{number:,}" for number in numbers), methods)
        for name, reason in self.skipped.items():
            table.add_row(name, "left alone", "", "", "", "", "", "", reason)
        return table

    def to_json(self) -> str:
        """Return everything as indented JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def __str__(self) -> str:
        """Return the table as text."""
        from rich.console import Console

        console = Console(width=160, file=None, record=True, quiet=False)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get()


def inspect(model: nn.Module, example: Example, *, methods: Sequence[Factorization] = ALL) -> Inspection:
    """Look at a network without changing it.

    Args:
        model: Any eager network.
        example: A batch of inputs.
        methods: The decompositions to ask about.

    Raises:
        TypeError: If the model is no eager `nn.Module`.
        ValueError: If the example does not go through it.
    """
    model = unwrap(model)
    found = survey(model, example)
    views = tuple(_view(model, layer, methods) for layer in found.layers)
    return Inspection(views, found.skipped, cost(model, example))


def _view(model: nn.Module, layer: Layer, methods: Sequence[Factorization]) -> LayerView:
    weight = working_weight(layer, model.get_submodule(layer.name)).flatten(2)
    energy = torch.linalg.svdvals(weight.float()).square().sum(0).cumsum(0)
    share = energy / energy[-1].clamp_min(1e-30)
    ranks = [int((share < bound - 1e-6).sum()) + 1 for bound in (0.9, 0.99)]
    fitting: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for method in methods:
        fit = method.fits(layer)
        paying = method.ranks(layer) if fit else []
        if paying:
            largest = max(paying, key=lambda rank: method.cost(layer, rank).macs)  # noqa: B023
            fitting[describe(method)] = str(largest)
        else:
            reasons[describe(method)] = fit.reason or "no rank pays"
    return LayerView(layer, layer.cost, ranks[0], ranks[1], len(share), fitting, reasons)
